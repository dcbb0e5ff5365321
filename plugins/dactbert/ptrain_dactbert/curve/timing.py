"""Time early exit against the unmodified encoder: one run at its levels, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.early_exit.rules import AgreementLevel
from plugin_trainer.early_exit.windows import windows
from ptrain_dactbert.curve.exits import chosen_level, nearest_level
from ptrain_dactbert.curve.groups import Curves, Group
from ptrain_dactbert.curve.rules import answers_by
from ptrain_dactbert.curve.runs import Judged
from ptrain_dactbert.curve.stopwatch import (
    UNMODIFIED,
    interleaved,
    so_many_threads,
    summaries,
)
from ptrain_dactbert.curve.work import (
    Batch,
    leaving,
    make_batch,
    one_by_one,
    rebatched,
    split_rows,
    unmodified,
)

# B rows of a batch

NO_EXIT = "checked, no exit"
"""All blocks, with a check after each: what checks cost."""
REBATCHED = "re-batched"
"""At the chosen level, in windows of several batches."""


def time_exits(
    curves: Curves,
    baselines: Sequence[Group],
    *,
    depths: Sequence[float],
    batch_sizes: Sequence[int],
    rounds: int,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The times of one run by batch size and by what answered: median and p95 in ms a row.

    depths    mean blocks at whose nearest level the run is timed, beside its certified levels
    rounds    over all batches
    progress  is told the batch size that comes next
    """
    run = curves.run
    levels = {f"{depth:g} blocks": nearest_level(curves, depth) for depth in depths}
    levels |= curves.levels
    rules = {name: AgreementLevel(run.agreement_map, level) for name, level in levels.items()}
    work = {
        UNMODIFIED: unmodified(run),
        NO_EXIT: leaving(run, AgreementLevel(run.agreement_map, float("inf"))),
        **{name: leaving(run, rule) for name, rule in rules.items()},
        # A smaller model is another way to be faster.
        **{group.label: unmodified(group.runs[0]) for group in _smaller(baselines, than=run)},
    }
    blocks = {UNMODIFIED: run.num_blocks, NO_EXIT: run.num_blocks}
    blocks |= {group.label: group.num_blocks for group in baselines}
    _, chosen = chosen_level(curves)
    by_size: dict[str, Any] = {}
    with so_many_threads(threads):
        for size in batch_sizes:
            progress(f"timing batches of {size} ...")
            parts = split_rows(run.rows, size)
            batches = [make_batch(run, part_B) for part_B in parts]
            seconds = interleaved(work, batches, rounds=rounds, device=run.loaded.device)
            by_name = dict(summaries(seconds, [len(part_B) for part_B in parts]))
            if size > 1:
                by_name |= _rebatched(curves, chosen, batches, rounds=rounds)
            for name, figures in by_name.items():
                level = chosen if name == REBATCHED else levels.get(name)
                known = {"blocks": float(blocks[name])} if level is None else _at(run, level, parts)
                figures |= known
            by_size[str(size)] = by_name
    return {
        "run": run.name,
        "precision": run.loaded.precision.name,
        "device": str(run.loaded.device),
        "threads": threads,
        "rounds": rounds,
        "batches": by_size,
    }


def _smaller(baselines: Sequence[Group], *, than: Judged) -> list[Group]:
    """The plain baselines of fewer blocks."""
    return [group for group in baselines if not group.curves and group.num_blocks < than.num_blocks]


def _at(run: Judged, level: float, parts: Sequence[Tensor]) -> dict[str, float]:
    """The mean block of the timed rows at a level, and the accuracy of all rows."""
    answers = answers_by(AgreementLevel(run.agreement_map, level), run.rows)
    return {
        "level": level,
        "blocks": float(answers.block_R[torch.cat(list(parts))].double().mean()),
        "accuracy": answers.summary()["accuracy"],
    }


def _rebatched(
    curves: Curves, level: float, batches: Sequence[Batch], *, rounds: int
) -> dict[str, Any]:
    """The times a row where windows are answered, beside the unmodified encoder on the same."""
    run = curves.run
    work = rebatched(run, AgreementLevel(run.agreement_map, level))
    if work is None:
        return {}
    items = list(windows(batches))
    seconds = interleaved(
        {UNMODIFIED: one_by_one(unmodified(run)), REBATCHED: work},
        items,
        rounds=rounds,
        device=run.loaded.device,
    )
    rows = [sum(len(batch["input_ids"]) for batch in window) for window in items]
    return {REBATCHED: dict(summaries(seconds, rows))[REBATCHED]}
