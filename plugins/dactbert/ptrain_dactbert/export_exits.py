"""The exits of an export: the run's calibration where it holds, else one of the segments' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.calibration import Calibration, key_of, read_calibration
from plugin_trainer.early_exit.fitting import BlockAnswers, fit
from plugin_trainer.errors import PtrainError
from ptrain_dactbert import runtime
from ptrain_dactbert.block_logits import BlockLogits
from ptrain_dactbert.export_compare import Exits

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

# N blocks, B rows, C classes

_DEFAULT = "1%"


def calibrated(
    loaded: LoadedRun, rows: BlockLogits, logits_NBC: Tensor, *, int8: bool
) -> tuple[Calibration | None, Sequence[PtrainError]]:
    """The calibration of the segments, and what could not be promised.

    A calibration is of one precision: only that of a run in float32 holds for segments in float32.
    """
    own = calibration_of_run(loaded)
    if own is not None and own.precision == "fp32" and not int8:
        return own, ()
    try:
        precision = "int8" if int8 else "fp32"
        return fit(BlockAnswers(logits_NBC), precision=precision, rows_sha256=rows.sha256)
    except PtrainError as error:
        return None, [error]


def calibration_of_run(loaded: LoadedRun) -> Calibration | None:
    """The calibration of the run's weights, in whatever precision it is."""
    return read_calibration(loaded.folder, key_of(loaded.checkpoint.path, loaded.weights))


def about_exits(calibration: Calibration | None) -> dict[str, Any]:
    """The calibration as the runtime reads it."""
    if calibration is None:
        return {"agreement_map": None, "certified": []}
    certified = [asdict(item) for item in calibration.certified]
    return {"agreement_map": asdict(calibration.agreement_map), "certified": certified}


def choose(about: Mapping[str, Any], exit_: str | None, refused: Sequence[PtrainError]) -> str:
    """By what the runtime leaves where it is not told. Raises PtrainError for what is not there."""
    if exit_ is None:
        certified = [item["max_disagreement"] for item in about["certified"]]
        return _DEFAULT if 0.01 in certified else "off"
    try:
        runtime.level_of(about, exit_)
    except ValueError as error:
        raise PtrainError(f"--exit {exit_}: {error}", hint=[str(one) for one in refused]) from None
    return exit_


def exits_of_run(loaded: LoadedRun, chosen: str) -> Exits | None:
    """Where the run leaves by the same choice; None where its own calibration does not allow it."""
    if chosen == "off":
        return Exits(None, None)
    own = calibration_of_run(loaded)
    if own is None or own.precision != loaded.precision.name:
        return None
    try:
        level = runtime.level_of(about_exits(own), chosen)
    except ValueError:
        return None
    return exits_of(own, level)


def exits_of(calibration: Calibration | None, level: float | None) -> Exits:
    """A level of a calibration."""
    fitted = calibration.agreement_map if calibration is not None else None
    return Exits(fitted if isinstance(fitted, AgreementMap) else None, level)


def promises(calibration: Calibration | None, refused: Sequence[PtrainError]) -> list[str]:
    """What is certified, and why the rest is not, a line each."""
    reasons = [f"not certified: {str(error).splitlines()[0]}" for error in refused]
    if calibration is None:
        return reasons
    blocks = calibration.agreement_map.num_blocks
    lines = [
        f"--exit {100 * item.max_disagreement:g}%  level {item.level:g}, {item.mean_block:.2f} of "
        f"{blocks} blocks, {item.disagreeing} of {item.rows} rows disagree"
        for item in calibration.certified
    ]
    return lines + reasons
