"""Runs of one recipe as a group: their rules over all settings, and what --exit does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from plugin_trainer.early_exit.choice import use_exit
from plugin_trainer.early_exit.rules import AgreementLevel
from plugin_trainer.errors import PtrainError
from ptrain_dactbert.curve.rules import (
    RULES,
    Answers,
    Point,
    after_block,
    answers_by,
    at_depth,
    sweep,
)
from ptrain_dactbert.curve.runs import Judged

EXITS = ("1%", "2%", "lossless")
"""What `--exit` promises."""


@dataclass(frozen=True, eq=False)
class Curves:
    """A run with exits: its rules over all settings, and what --exit does.

    promised  by the name of the exit; refused says why there is no other
    """

    run: Judged
    points: Mapping[str, Sequence[Point]]
    promised: Mapping[str, Answers]
    levels: Mapping[str, float]
    refused: Sequence[str]

    def at(self, rule: str, depth: float) -> Answers | None:
        """A rule at a mean block; all blocks, by whatever rule, are the last block's answer."""
        if depth == self.run.num_blocks:
            return after_block(self.run.rows, self.run.num_blocks)
        return at_depth(self.points[rule], depth)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one recipe: their label, and curves or, by plain fine-tuning, one answer each."""

    label: str
    runs: Sequence[Judged]
    curves: Sequence[Curves]

    @property
    def num_blocks(self) -> int:
        """How many blocks their encoder has."""
        return self.runs[0].num_blocks


def trace(run: Judged) -> Curves:
    """Replay every rule on a run."""
    points = {name: sweep(name, run.rows, run.agreement_map) for name in RULES}
    promised, levels, refused = _promised(run)
    return Curves(
        run=run,
        points={name: of for name, of in points.items() if of},
        promised=promised,
        levels=levels,
        refused=refused,
    )


def _promised(run: Judged) -> tuple[dict[str, Answers], dict[str, float], list[str]]:
    """What `--exit` would do, by its own choice of the rule."""
    model: Any = run.loaded.model
    promised, levels, refused = {}, {}, []
    for exit_ in EXITS:
        try:
            precision = run.loaded.precision.name
            use_exit(model, exit_, run.calibration, precision=precision, where=run.name)
        except PtrainError as error:
            refused.append(f"{run.name}: {error.message}")
            continue
        promised[exit_] = answers_by(model.exit_rule, run.rows)
        if isinstance(model.exit_rule, AgreementLevel):
            levels[exit_] = model.exit_rule.level
    return promised, levels, refused


def group_baselines(against: Sequence[Judged]) -> list[Group]:
    """The baselines by recipe: plain ones by the number of blocks, others by their settings."""
    groups: dict[str, list[Judged]] = {}
    for run in against:
        plural = "s" if run.num_blocks > 1 else ""
        plain = f"plain, {run.num_blocks} block{plural}"
        key = plain if run.is_plain else str(run.model_settings)
        groups.setdefault(key, []).append(run)
    return [
        Group(key, runs, ())
        if runs[0].is_plain
        else Group(common_name(runs), runs, [trace(run) for run in runs])
        for key, runs in groups.items()
    ]


def common_name(runs: Sequence[Judged]) -> str:
    """What the names of runs begin with."""
    letters = zip(*(run.name for run in runs), strict=False)
    same = takewhile(lambda column: len(set(column)) == 1, letters)
    return "".join(column[0] for column in same).rstrip("-_. ") or runs[0].name
