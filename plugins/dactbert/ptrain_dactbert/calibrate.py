"""Calibrate a run's exits on rows without labels: fit the agreement map, certify levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plugin_trainer.early_exit.calibration import Calibration, key_of, write_calibration
from plugin_trainer.early_exit.collapse import collapse_lines
from plugin_trainer.early_exit.fitting import PROMISES as PROMISES
from plugin_trainer.early_exit.fitting import BlockAnswers, fit
from plugin_trainer.errors import PtrainError
from ptrain_dactbert.block_logits import Batch, collect

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun


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
    rows = collect(loaded, _batches(loaded, lines), if_empty="give some: --rows FILE")
    calibration, refused = fit(
        BlockAnswers(rows.logits_NBC),
        precision=loaded.precision.name,
        rows_sha256=rows.sha256,
        promises=promises,
        confidence=confidence,
        apart=apart,
    )
    if refused and not calibration.certified:
        return calibration, refused  # an earlier one may keep promises: it stays
    key = key_of(loaded.checkpoint.path, loaded.weights)
    return write_calibration(loaded.folder, key, calibration), refused


def _batches(loaded: LoadedRun, lines: Sequence[str] | None) -> Iterable[Batch]:
    if lines is not None:
        batches: Iterable[Batch] = loaded.data.predict(lines)
        return batches
    loader = loaded.data.validation()
    if loader is None:
        raise PtrainError(
            "the run has no validation data to calibrate on",
            hint="give texts, one a line, without labels: --rows FILE",
        )
    rows: Iterable[Batch] = loader
    return rows


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
    return lines + collapse_lines(calibration.certified)


def read_rows(path: Path) -> list[str]:
    """The lines of a text file. Raises PtrainError if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            # Not splitlines: that also ends lines inside a text.
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PtrainError(f"{path} cannot be read: {reason}") from None
