"""Where the rows of an evaluation left the encoder: a file in the run folder, and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from plugin_trainer import StepOutcome
from plugin_trainer.early_exit.collapse import collapse_warning
from ptrain_dactbert.exit_groups import by_label, by_length
from ptrain_dactbert.settings import ExitStatisticsSettings

# R rows of a split

Key = tuple[str, str]
"""A split and a weight set."""

UNKNOWN = -1
"""The difficulty, number or length of a row whose batch does not say it."""


@dataclass(frozen=True)
class Exits:
    """What an evaluation of one split with one weight set found, row by row.

    num_blocks  the last block there is
    block_R     the block after which each row left, from 1
    length_R    how many tokens it has
    agrees_R    whether the answer there is that of full depth
    correct_R   whether it is the label
    """

    num_blocks: int
    row_R: Tensor
    block_R: Tensor
    difficulty_R: Tensor
    label_R: Tensor
    length_R: Tensor
    agrees_R: Tensor
    correct_R: Tensor

    def where(self, chosen_R: Tensor) -> Exits:
        """The chosen rows alone."""
        return Exits(
            num_blocks=self.num_blocks,
            row_R=self.row_R[chosen_R],
            block_R=self.block_R[chosen_R],
            difficulty_R=self.difficulty_R[chosen_R],
            label_R=self.label_R[chosen_R],
            length_R=self.length_R[chosen_R],
            agrees_R=self.agrees_R[chosen_R],
            correct_R=self.correct_R[chosen_R],
        )

    def by_difficulty(self) -> dict[int, Exits]:
        """The rows of each difficulty, the unknown one left out."""
        grades = [grade for grade in self.difficulty_R.unique().tolist() if grade != UNKNOWN]
        return {grade: self.where(self.difficulty_R == grade) for grade in grades}

    def groups(self, *, label_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The summaries of the rows of each difficulty, label and quarter by length."""
        labelled = by_label(self.label_R, label_names)
        lengths = by_length(self.length_R)
        return {
            "by_difficulty": {
                str(grade): some.summary() for grade, some in self.by_difficulty().items()
            },
            "by_label": {name: self.where(its_R).summary() for name, its_R in labelled.items()},
            "by_length": {name: self.where(its_R).summary() for name, its_R in lengths.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Count, means and histogram, as JSON has them."""
        blocks_R = self.block_R
        return {
            "count": len(blocks_R),
            "accuracy": rounded_mean(self.correct_R),
            "mean_exit_block": rounded_mean(blocks_R),
            "exit_agreement": rounded_mean(self.agrees_R),
            "histogram": torch.bincount(blocks_R, minlength=self.num_blocks + 1)[1:].tolist(),
        }


def rounded_mean(values_R: Tensor) -> float:
    """The mean to six digits."""
    return round(float(values_R.double().mean()), 6)


@dataclass
class Gathered:
    """The batches of an evaluation that is under way; tensors stay where they are."""

    parts: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, batch: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Keep what the statistics need of a batch."""
        blocks_B, answers_B = outputs["exit_block"], outputs["logits"].argmax(-1)
        unknown_B = torch.full_like(blocks_B, UNKNOWN)
        mask_BT = batch.get("attention_mask")
        self.parts.append(
            {
                "block_R": blocks_B,
                "agrees_R": answers_B.eq(outputs["full_logits"].argmax(-1)),
                "correct_R": answers_B.eq(batch["labels"]),
                "row_R": batch.get("row", unknown_B),
                "difficulty_R": batch.get("difficulty", unknown_B),
                "label_R": batch["labels"],
                "length_R": unknown_B if mask_BT is None else mask_BT.sum(-1),
            }
        )

    def on_cpu(self) -> Gathered:
        """The same, where other processes can read it."""
        return Gathered([{key: its.cpu() for key, its in part.items()} for part in self.parts])

    def exits(self, *, num_blocks: int) -> Exits:
        """All batches as one, in the order of the rows."""
        merged = {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}
        order_R = merged["row_R"].argsort(stable=True)
        # Another model may report exits and not say how many blocks it has.
        num_blocks = max(num_blocks, int(merged["block_R"].max()))
        ordered = {key: values_R[order_R] for key, values_R in merged.items()}
        return Exits(num_blocks=num_blocks, **ordered)


def joined(given: Sequence[Mapping[Key, Gathered]]) -> dict[Key, Gathered]:
    """What all processes gathered, as one would have: they take the batches in turns."""
    return {
        key: Gathered(
            [
                part
                for part in chain.from_iterable(
                    zip_longest(*[its[key].parts if key in its else () for its in given])
                )
                if part is not None
            ]
        )
        for key in dict.fromkeys(chain.from_iterable(given))
    }


class ExitStatistics:
    """The callback. It listens to evaluations only, so a training step costs nothing."""

    def __init__(self, settings: ExitStatisticsSettings) -> None:
        self.settings = settings
        self.latest: dict[Key, Exits] = {}
        self._open: dict[Key, Gathered] = {}
        self._label_names: Sequence[str] = ()

    def ptrain_evaluation_batch_end(
        self, run: Any, split: str, weights: str, batch: Any, outcome: StepOutcome
    ) -> None:
        """Gather one batch, if the model says where its rows left."""
        del run
        if "exit_block" in outcome.outputs and "labels" in batch:
            self._open.setdefault((split, weights), Gathered()).add(batch, outcome.outputs)

    def ptrain_evaluation_end(self, run: Any, metrics: MutableMapping[str, float]) -> None:
        """Close the evaluation: its statistics, over the rows of all processes, replace those of
        the one before.
        """
        del metrics  # the mean exit block and the agreement are there already, from the model
        own = {key: gathered.on_cpu() for key, gathered in self._open.items()}
        for key, gathered in joined(run.world.gather(own)).items():
            self.latest[key] = gathered.exits(num_blocks=getattr(run.model, "num_blocks", 1))
        self._open.clear()
        self._label_names = getattr(getattr(run, "data", None), "label_names", ())
        if not run.world.is_first:
            return
        if run.folder is not None and self.settings.file and self.latest:
            write_json(self.document(), to=Path(run.folder) / self.settings.file)

    def ptrain_run_end(self, run: Any, result: Any) -> None:
        """Show the table of the last evaluation."""
        del result
        for (split, weights), exits in sorted(self.latest.items()):
            if split == "val" and weights == "raw":
                warning = collapsed(exits, of=run.model)
                run.report("exits by difficulty", "\n".join([*table(exits), *warning]))

    def document(self) -> dict[str, Any]:
        """Everything that is known, by split and weight set."""
        return {
            f"{split}/{weights}": {
                **exits.summary(),
                **exits.groups(label_names=self._label_names),
                # One number a row, in the order of the data: row k left after block rows[k].
                "rows": exits.block_R.tolist(),
            }
            for (split, weights), exits in sorted(self.latest.items())
        }


def collapsed(exits: Exits, *, of: Any) -> list[str]:
    """A warning if nearly all rows left at one block, though a rule decided."""
    histogram = exits.summary()["histogram"]
    # Without halting logits and without --exit nothing decides: every row runs to the last block.
    is_full_depth = not getattr(of, "learns_halting", True) and histogram[-1] == len(exits.block_R)
    warning = "" if is_full_depth else collapse_warning(histogram)
    return wrap(f"warning: {warning}", width=WIDTH) if warning else []


def write_json(document: Mapping[str, Any], *, to: Path) -> None:
    """Replace a file in one go, so that a reader never sees half of it."""
    beside = to.with_name(to.name + ".part")
    beside.write_text(json.dumps(document) + "\n", encoding="utf-8")
    beside.replace(to)


# ---------------------------------------------------------------------------------------- table

WIDTH = 80
"""The table fits a terminal of this many columns."""


def table(exits: Exits) -> list[str]:
    """A line per difficulty and one for all: count, accuracy, mean exit block, share per block."""
    graded = {str(grade): some for grade, some in exits.by_difficulty().items()}
    named = {**graded, "all": exits}
    ranges = block_ranges(exits.num_blocks)
    heads = ["difficulty", "count", "accuracy", "mean exit", *map(range_name, ranges)]
    widths = [max(len(heads[0]), *map(len, named)), 7, 8, 9, *([5] * len(ranges))]
    lines = [align(heads, widths)]
    for name, some in named.items():
        summary = some.summary()
        histogram = summary["histogram"]
        shares = [sum(histogram[first - 1 : last]) / len(some.block_R) for first, last in ranges]
        cells = [
            name,
            str(summary["count"]),
            f"{summary['accuracy']:.3f}",
            f"{summary['mean_exit_block']:.2f}",
            *(f"{100 * share:.0f}%" if share else "." for share in shares),
        ]
        lines.append(align(cells, widths))
    return lines


def block_ranges(num_blocks: int) -> list[tuple[int, int]]:
    """The blocks of each column of the histogram: one each, or several where they are many."""
    columns = 7
    size = -(-num_blocks // columns)
    return [(first, min(first + size - 1, num_blocks)) for first in range(1, num_blocks + 1, size)]


def range_name(blocks: tuple[int, int]) -> str:
    """ "3", or "3-4"."""
    first, last = blocks
    return str(first) if first == last else f"{first}-{last}"


def align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of the table, right-aligned."""
    return " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
