"""Where the rows of each label and length leave, at the level that one would use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plugin_trainer.early_exit.collapse import collapse_warning
from plugin_trainer.early_exit.rules import AgreementLevel
from ptrain_dactbert.curve.groups import Curves
from ptrain_dactbert.curve.rules import answers_by
from ptrain_dactbert.curve.runs import label_names
from ptrain_dactbert.exit_groups import by_label, by_length

# R rows of a split


def chosen_level(curves: Curves) -> tuple[str, float]:
    """The level to look at closely: certified for 2 %, or the one nearest to 2.5 of 6 blocks."""
    if "2%" in curves.levels:
        return "certified for 2%", curves.levels["2%"]
    depth = curves.run.num_blocks * 2.5 / 6
    return f"nearest to {depth:.3g} blocks", nearest_level(curves, depth)


def nearest_level(curves: Curves, depth: float) -> float:
    """The level at which rows leave nearest to a mean block."""
    points = curves.points["agreement"]
    return min(points, key=lambda point: abs(point.answers.blocks - depth)).setting


def exit_shares(curves: Curves) -> dict[str, Any]:
    """Where rows of each label and of each quarter by length leave, of one run at its level."""
    run = curves.run
    assert run.rows.labels_B is not None
    chosen, level = chosen_level(curves)
    answers = answers_by(AgreementLevel(run.agreement_map, level), run.rows)

    def shares(chosen_R: Tensor) -> dict[str, Any]:
        block_R = answers.block_R[chosen_R]
        histogram = block_R.bincount(minlength=run.num_blocks + 1)[1:].tolist()
        return {
            "count": len(block_R),
            "blocks": float(block_R.double().mean()),
            "accuracy": float(answers.correct_R[chosen_R].double().mean()),
            "agreement": float(answers.last_R[chosen_R].double().mean()),
            "histogram": histogram,
        }

    everything = shares(torch.ones_like(answers.correct_R))
    labels = by_label(run.rows.labels_B, label_names(run))
    lengths = by_length(run.rows.lengths_B)
    return {
        "run": run.name,
        "chosen": chosen,
        "level": level,
        "all": everything,
        "by_label": {name: shares(chosen_R) for name, chosen_R in labels.items()},
        "by_length": {name: shares(chosen_R) for name, chosen_R in lengths.items()},
        "warning": collapse_warning(everything["histogram"]),
    }
