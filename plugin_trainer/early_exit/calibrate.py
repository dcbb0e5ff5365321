"""Calibrate a run's exits on rows without labels, and write the result into its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from plugin_trainer.early_exit.calibration import (
    Calibration,
    key_of,
    key_of_task,
    write_calibration,
)
from plugin_trainer.early_exit.choice import tasks_with_exits
from plugin_trainer.early_exit.collapse import collapse_lines
from plugin_trainer.early_exit.fitting import PROMISES, BlockAnswers, fit, join
from plugin_trainer.errors import PtrainError

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

Batch = Mapping[str, Any]


class Outcome(NamedTuple):
    """The calibration of a task, if its rows could be used, and why promises could not be made."""

    calibration: Calibration | None
    refused: Sequence[PtrainError]


def calibrate(
    loaded: LoadedRun,
    *,
    promises: Sequence[float] = PROMISES,
    confidence: float = 0.95,
    apart: bool = False,
    lines: Sequence[str] | None = None,
) -> dict[str, Outcome]:
    """Fit and certify each task that has exits; a model of one task has the task "".

    apart  fit on every third row and certify on the others: then the promise is exact
    lines  inputs to use, without labels; None: the validation split

    Of a task for which no promise could be made, nothing is written: an earlier calibration may
    keep some. Raises PtrainError for a model without exits, and where there are no rows.
    """
    tasks = tasks_with_exits(loaded.model)
    rows = _by_task(_batches(loaded, lines))
    key = key_of(loaded.checkpoint.path, loaded.weights)
    outcomes = {}
    for task in tasks:
        try:
            answers, digest = _answers(loaded, rows.get(task, ()), task=task)
            calibration, refused = fit(
                answers,
                precision=loaded.precision.name,
                rows_sha256=digest,
                promises=promises,
                confidence=confidence,
                apart=apart,
            )
        except PtrainError as error:
            outcomes[task] = Outcome(None, [error])
            continue
        if calibration.certified or not refused:
            at = key_of_task(key, task)
            calibration = write_calibration(loaded.folder, at, calibration)
        outcomes[task] = Outcome(calibration, refused)
    return outcomes


def _batches(loaded: LoadedRun, lines: Sequence[str] | None) -> Iterable[Batch]:
    if lines is not None:
        yield from loaded.data.predict(lines)
        return
    loader = loaded.data.validation()
    if loader is None:
        raise PtrainError(
            "the run has no validation data to calibrate on",
            hint="give texts, one a line, without labels: --rows FILE",
        )
    if not isinstance(loader, Mapping):
        yield from loader
        return
    for task, batches in loader.items():
        for batch in batches:
            yield {**batch, "task": task}


def _by_task(batches: Iterable[Batch]) -> dict[str, list[Batch]]:
    by_task: dict[str, list[Batch]] = {}
    for batch in batches:
        by_task.setdefault(batch.get("task", ""), []).append(batch)
    return by_task


def _answers(loaded: LoadedRun, batches: Sequence[Batch], *, task: str) -> tuple[BlockAnswers, str]:
    """What all blocks answer, in float64, and the hash of the rows' tokens."""
    model: Any = loaded.model
    parts, digest = [], hashlib.sha256()
    for batch in batches:
        for ids_T, mask_T in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            digest.update(ids_T[mask_T.bool()].cpu().numpy().tobytes() + b"\n")
        moved = loaded.hooks.move_batch(run=loaded, batch=batch, device=loaded.device)
        with torch.inference_mode(), loaded.precision.autocast():
            found: BlockAnswers = model.block_answers(**moved)
        valid_BT = found.valid_BT.cpu() if found.valid_BT is not None else None
        logits_NBC = found.logits_NBC.cpu().double()
        parts.append(BlockAnswers(logits_NBC, valid_BT, found.tolerance))
    if not parts:
        of = f" the task '{task}'" if task else ""
        raise PtrainError(f"there are no rows to calibrate{of} on", hint="give some: --rows FILE")
    return join(parts), digest.hexdigest()


def report(outcome: Outcome) -> list[str]:
    """What was certified, a line each, for a terminal of 80 columns."""
    reasons = [str(error).splitlines()[0] for error in outcome.refused]
    calibration = outcome.calibration
    if calibration is None:
        return reasons
    tested_on = "other rows" if calibration.apart else "the rows of the fit"
    lines = [f"{calibration.rows} rows in {calibration.precision}; tested on {tested_on}"]
    blocks = calibration.agreement_map.num_blocks
    for item in calibration.certified:
        exit_ = f"--exit {100 * item.max_disagreement:g}%"
        level = f"level {item.level:g}"
        lines.append(
            f"{exit_:<12} {level:<12} {item.mean_block:.2f} of {blocks} blocks, "
            f"{item.disagreeing} of {item.rows} rows disagree"
        )
    return [*lines, *reasons, *collapse_lines(calibration.certified)]
