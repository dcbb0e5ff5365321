"""Export a trained model to ONNX: the model knows how, the folder is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from plugin_trainer.errors import PtrainError
from plugin_trainer.files import fsync_folder
from plugin_trainer.training.inference import LoadedRun


@runtime_checkable
class ExportsOnnx(Protocol):
    """A model that can be exported."""

    def export_onnx(
        self,
        folder: Path,
        *,
        loaded: LoadedRun,
        int8: bool,
        max_loss: float | None,
        exit_: str | None,
    ) -> Sequence[str]:
        """Fill an empty folder; gives what to tell the user, a line each.

        loaded    the run that the model is of, with its data module
        int8      quantize the weights
        max_loss  how much accuracy the export may lose
        exit_     how rows leave by default, for a model with early exits

        Raises PtrainError for what cannot be exported, and for an export that loses too much.
        """
        ...


def export_onnx(
    loaded: LoadedRun,
    folder: Path,
    *,
    int8: bool = False,
    max_loss: float | None = None,
    exit_: str | None = None,
) -> Sequence[str]:
    """Export a run's model into a new folder. Raises PtrainError for a model without an export."""
    if not isinstance(loaded.model, ExportsOnnx):
        raise PtrainError(
            f"{loaded.settings.model} has no ONNX export",
            hint="models that have one: dactbert/classifier, trained with loss = 'joint'",
        )
    place = folder.absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise PtrainError(f"{folder} is there already", hint="name a folder that is new or empty")
    beside = place.with_name(f".{place.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        lines = loaded.model.export_onnx(
            beside, loaded=loaded, int8=int8, max_loss=max_loss, exit_=exit_
        )
        beside.rename(place)
        fsync_folder(place.parent)
    except OSError as error:
        raise PtrainError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return lines
