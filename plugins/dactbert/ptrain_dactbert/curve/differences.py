"""The knob minus its relatives and the baselines, row by row: differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptrain_dactbert.curve.groups import EXITS, Group
from ptrain_dactbert.curve.intervals import paired
from ptrain_dactbert.curve.rules import RULES, after_block

# R rows of a split


def within(ours: Group, depths: Sequence[float]) -> list[dict[str, Any]]:
    """The knob minus its relatives on the same models, at equal mean blocks."""
    items = []
    for rule in list(ours.curves[0].points)[1:]:
        for depth in depths:
            pairs = [(its.at("agreement", depth), its.at(rule, depth)) for its in ours.curves]
            known = [(one, other) for one, other in pairs if one is not None and other is not None]
            if len(known) < len(pairs):
                continue
            items.append(
                {
                    "what": "agreement",
                    "minus": RULES[rule],
                    "blocks": depth,
                    "paired_by": "run",
                    "accuracy": paired(_minus([(a.correct_R, b.correct_R) for a, b in known])),
                    "agreement": paired(_minus([(a.last_R, b.last_R) for a, b in known])),
                }
            )
    return items


def against(ours: Group, group: Group, depths: Sequence[float]) -> list[dict[str, Any]]:
    """The knob minus a baseline: with all its blocks, or of a recipe with exits at equal blocks."""
    full = float(ours.num_blocks)
    is_as_deep = group.num_blocks == ours.num_blocks
    if group.curves:
        compared: list[float | None] = [*depths, full] if is_as_deep else [*depths]
    else:
        compared = [*depths, full] if is_as_deep else [float(group.num_blocks)]
    items = [_difference(ours, group, "agreement", depth) for depth in compared]
    if is_as_deep and not group.curves:
        items += [_difference(ours, group, exit_, None) for exit_ in EXITS]
    return [item for item in items if item is not None]


def _difference(ours: Group, group: Group, what: str, depth: float | None) -> dict[str, Any] | None:
    """One difference; None where one of the runs has nothing to compare there.

    what   the knob at a mean block, or with no depth an exit
    """
    by_run = []
    for curves in ours.curves:
        mine = curves.promised.get(what) if depth is None else curves.at(what, depth)
        theirs_R = _partner(group, depth, seed=curves.run.seed)
        if mine is None or theirs_R is None:
            return None
        by_run.append(mine.correct_R.double() - theirs_R)
    return {
        "what": what,
        "minus": group.label,
        "blocks": depth,
        "paired_by": _pairing(ours, group),
        "accuracy": paired(torch.stack(by_run)),
    }


def _partner(group: Group, depth: float | None, *, seed: int) -> Tensor | None:
    """Whether each row is answered correctly by the run with this seed, or the mean of all runs."""
    same = [number for number, run in enumerate(group.runs) if run.seed == seed]
    correct = []
    for number in same[:1] or range(len(group.runs)):
        answers = (
            group.curves[number].at("agreement", depth)
            if group.curves and depth is not None
            else after_block(group.runs[number].rows, len(group.runs[number].rows.logits_NBC))
        )
        if answers is None:
            return None
        correct.append(answers.correct_R.double())
    return torch.stack(correct).mean(0)


def _pairing(ours: Group, group: Group) -> str:
    seeds = {run.seed for run in group.runs}
    same = sum(run.seed in seeds for run in ours.runs)
    if same == len(ours.runs):
        return "the run with the same seed"
    every = "the mean of its runs"
    return every if not same else f"the run with the same seed, or else {every}"


def _minus(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([one.double() - other.double() for one, other in pairs])
