"""What core's callbacks take. Imports no torch, so that checking settings needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings:
    """When to stop a run that no longer improves.

    watch         the metric, "val/loss" or any other of an evaluation, "val_ema/..." included
    mode          whether lower ("min") or higher ("max") is better
    patience      how many evaluations in a row may pass without improvement; the run stops at the
                  last
    min_delta     how much better an evaluation must be to count as an improvement
    restore_best  leave the model in memory with the weights of the best checkpoint
    """

    watch: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    restore_best: bool = False


@dataclass(frozen=True, kw_only=True)
class ProgressBarSettings:
    """How progress is shown.

    mode  "auto" (a bar on a terminal, plain lines elsewhere), "bar", "lines" or "off"
    """

    mode: Literal["auto", "bar", "lines", "off"] = "auto"


@dataclass(frozen=True, kw_only=True)
class LearningRateMonitorSettings:
    """Nothing can be set."""


@dataclass(frozen=True, kw_only=True)
class TensorBoardSettings:
    """Where TensorBoard's files go.

    folder  relative to the run folder
    """

    folder: str = "tensorboard"
