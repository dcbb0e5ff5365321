"""Calibrate a run's exits on rows without labels: fit the agreement map, certify levels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import fit_agreement
from plugin_trainer.early_exit.calibration import Calibration, key_of, write_calibration
from plugin_trainer.early_exit.certify import Certified, certify
from plugin_trainer.errors import PtrainError

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

# N blocks, B rows, C classes

PROMISES = (0.01, 0.02)
"""What is certified where nothing else is asked for."""


def calibrate(
    loaded: LoadedRun,
    *,
    promises: Sequence[float] = PROMISES,
    confidence: float = 0.95,
    apart: bool = False,
    lines: Sequence[str] | None = None,
) -> tuple[Calibration, list[PtrainError]]:
    """Fit and certify, and write the result into the run folder.

    apart  fit on every third row and certify on the others: then the promise is exact
    lines  texts to use, without labels; None: the validation split

    Gives the calibration and why promises could not be made; nothing is written if none could.
    Raises PtrainError for a model without exits, and for rows that cannot be used.
    """
    if not hasattr(loaded.model, "block_logits"):
        raise PtrainError(
            f"{loaded.settings.model} has no early exit", hint="calibrate a dactbert/classifier"
        )
    logits_NBC, digest = _block_logits(loaded, _batches(loaded, lines))
    fitted_B = torch.arange(logits_NBC.shape[1]) % 3 == 0
    fitting_NBC = logits_NBC[:, fitted_B] if apart else logits_NBC
    testing_NBC = logits_NBC[:, ~fitted_B] if apart else logits_NBC
    agreement_map = fit_agreement(fitting_NBC)
    scores_NB = agreement_map.scores(testing_NBC)
    certified: list[Certified] = []
    refused: list[PtrainError] = []
    for promise in sorted(promises):
        try:
            certified.append(
                certify(testing_NBC, scores_NB, max_disagreement=promise, confidence=confidence)
            )
        except PtrainError as error:
            refused.append(error)
    calibration = Calibration(
        agreement_map=agreement_map,
        precision=loaded.precision.name,
        rows=logits_NBC.shape[1],
        rows_sha256=digest,
        apart=apart,
        certified=tuple(certified),
    )
    if refused and not certified:
        return calibration, refused  # an earlier one may keep promises: it stays
    key = key_of(loaded.checkpoint.path, loaded.weights)
    return write_calibration(loaded.folder, key, calibration), refused


def _batches(loaded: LoadedRun, lines: Sequence[str] | None) -> Iterable[Mapping[str, Any]]:
    if lines is not None:
        batches: Iterable[Mapping[str, Any]] = loaded.data.predict(lines)
        return batches
    loader = loaded.data.validation()
    if loader is None:
        raise PtrainError(
            "the run has no validation data to calibrate on",
            hint="give texts, one a line, without labels: --rows FILE",
        )
    rows: Iterable[Mapping[str, Any]] = loader
    return rows


def _block_logits(loaded: LoadedRun, batches: Iterable[Mapping[str, Any]]) -> tuple[Tensor, str]:
    """The logits [N, B, C] of all rows in float64, and the hash of the rows' tokens."""
    model: Any = loaded.model
    parts, digest = [], hashlib.sha256()
    for batch in batches:
        for ids_T, mask_T in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            digest.update(ids_T[mask_T.bool()].cpu().numpy().tobytes() + b"\n")
        moved = loaded.hooks.move_batch(run=loaded, batch=batch, device=loaded.device)
        with torch.inference_mode(), loaded.precision.autocast():
            logits_NBC, _ = model.block_logits(
                input_ids=moved["input_ids"],
                attention_mask=moved["attention_mask"],
                token_type_ids=moved.get("token_type_ids"),
            )
        parts.append(logits_NBC.cpu().double())
    if not parts:
        raise PtrainError("there are no rows to calibrate on", hint="give some: --rows FILE")
    return torch.cat(parts, 1), digest.hexdigest()


def report(calibration: Calibration, refused: Sequence[PtrainError]) -> list[str]:
    """What was certified, a line each, for a terminal of 80 columns."""
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
    lines += [str(error).splitlines()[0] for error in refused]
    return lines


def read_rows(path: Path) -> list[str]:
    """The lines of a text file. Raises PtrainError if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            # Not splitlines: that also ends lines inside a text.
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PtrainError(f"{path} cannot be read: {reason}") from None
