"""All figures of a comparison, as JSON has them: curves, promises, baselines and differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ptrain_dactbert.curve.differences import against, within
from ptrain_dactbert.curve.exits import exit_shares
from ptrain_dactbert.curve.groups import EXITS, Curves, Group
from ptrain_dactbert.curve.intervals import CONFIDENCE, spread, wilson
from ptrain_dactbert.curve.rules import Answers, accumulated, after_block, depths_to_compare
from ptrain_dactbert.curve.runs import Judged, label_names

_GRID_PER_BLOCK = 20


def compare(ours: Group, baselines: Sequence[Group], *, split: str) -> dict[str, Any]:
    """Everything but the times."""
    first = ours.runs[0]
    depths = depths_to_compare(ours.num_blocks)
    return {
        "split": split,
        "rows": first.rows.logits_NBC.shape[1],
        "rows_sha256": first.rows.sha256,
        "label_names": list(label_names(first)),
        "num_blocks": ours.num_blocks,
        "confidence": CONFIDENCE,
        "depths": depths,
        "recipe": group_figures(ours, depths),
        "baselines": [
            plain_figures(group) if not group.curves else group_figures(group, depths)
            for group in baselines
        ],
        "differences": [
            *within(ours, depths),
            *(item for group in baselines for item in against(ours, group, depths)),
        ],
        "exits": exit_shares(ours.curves[0]),
    }


def group_figures(group: Group, depths: Sequence[float]) -> dict[str, Any]:
    """The curves of one recipe: each run's, and the mean over them."""
    rules = list(group.curves[0].points)
    full = [after_block(run.rows, run.num_blocks) for run in group.runs]
    steps = round((group.num_blocks - 1) * _GRID_PER_BLOCK)
    grid = [1 + step / _GRID_PER_BLOCK for step in range(steps + 1)]
    return {
        "label": group.label,
        "kind": "exits",
        "num_blocks": group.num_blocks,
        "full": figures(full),
        **({"accumulated": figures(known)} if (known := _accumulated(group)) else {}),
        "each_block": [
            figures([after_block(run.rows, block) for run in group.runs])
            for block in range(1, group.num_blocks + 1)
        ],
        "at_depth": {rule: _means(group.curves, rule, depths) for rule in rules},
        "curves": {rule: _means(group.curves, rule, grid) for rule in rules},
        "promised": {
            exit_: figures([curves.promised[exit_] for curves in group.curves])
            for exit_ in EXITS
            if all(exit_ in curves.promised for curves in group.curves)
        },
        "refused": [line for curves in group.curves for line in curves.refused],
        "runs": [_run_figures(curves) for curves in group.curves],
    }


def _accumulated(group: Group) -> list[Answers]:
    """The answers of runs that learned to halt to the end: those of all blocks, mixed."""
    found = [accumulated(run.rows) for run in group.runs]
    return [answers for answers in found if answers is not None]


def plain_figures(group: Group) -> dict[str, Any]:
    """Plain fine-tuning: one point."""
    points = [after_block(run.rows, 1) for run in group.runs]
    return {
        "label": group.label,
        "kind": "plain",
        "num_blocks": group.num_blocks,
        "full": {**figures(points), "blocks": spread([group.num_blocks] * len(points))},
        "runs": [
            {**_about(run), **figures([point])}
            for run, point in zip(group.runs, points, strict=True)
        ],
    }


def figures(answers: Sequence[Answers]) -> dict[str, Any]:
    """Mean and range over the seeds; of one run the Wilson interval of its rates too."""
    summaries = [item.summary() for item in answers]
    result: dict[str, Any] = {
        key: spread([summary[key] for summary in summaries]) for key in summaries[0]
    }
    if len(answers) == 1:
        for key in ("accuracy", "agreement", "own_agreement"):
            low, high = wilson(summaries[0][key], len(answers[0].correct_R))
            result[key] |= {"low": low, "high": high}
    return result


def _means(
    curves: Sequence[Curves], rule: str, depths: Iterable[float]
) -> list[dict[str, Any] | None]:
    """A rule at mean blocks, over the seeds; None where a run cannot be brought there by it."""
    result: list[dict[str, Any] | None] = []
    for depth in depths:
        answers = [known for its in curves if (known := its.at(rule, depth)) is not None]
        result.append(figures(answers) if len(answers) == len(curves) else None)
    return result


def _about(run: Judged) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.loaded.folder),
        "checkpoint": run.loaded.checkpoint.path.name,
        "seed": run.seed,
        "precision": run.loaded.precision.name,
    }


def _run_figures(curves: Curves) -> dict[str, Any]:
    """One run alone, with every setting that was tried."""
    run = curves.run
    return {
        **_about(run),
        "map": run.calibration_name,
        "map_is_stored": run.is_stored,
        "intercepts": list(run.agreement_map.intercepts),
        "slopes": list(run.agreement_map.slopes),
        "full": figures([after_block(run.rows, run.num_blocks)]),
        "levels": dict(curves.levels),
        "promised": {name: figures([answers]) for name, answers in curves.promised.items()},
        "settings": {
            rule: [{"setting": point.setting, **point.answers.summary()} for point in points]
            for rule, points in curves.points.items()
        },
    }
