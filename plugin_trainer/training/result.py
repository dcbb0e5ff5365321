"""What a run leaves in the hands of whoever started it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Status = Literal["finished", "stopped early", "interrupted"]


@dataclass(frozen=True)
class BestCheckpoint:
    """The best evaluation of one weight set, and the checkpoint that holds it."""

    watch: str
    value: float
    step: int
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    reason   why, in words
    step     optimizer steps completed, over all resumes
    epoch    the epoch of the last step, counted from 0
    samples  samples trained on, over all resumes
    metrics  the last evaluation, or that of the best weights where the model has these: val/... and
             val_ema/...
    best     the best evaluation of the raw and of the EMA weights, by weight set
    folder   the run folder
    model    the model with its last weights, or the best ones where `restore_best` asked for them;
             in evaluation mode
    seconds  how long this process trained
    signal   the number of the signal that interrupted the run, else 0
    reports  sections that callbacks added: title -> text
    """

    status: Status
    reason: str
    step: int
    epoch: int
    samples: int
    metrics: Mapping[str, float]
    best: Mapping[str, BestCheckpoint]
    folder: Path
    model: nn.Module
    seconds: float
    signal: int = 0
    reports: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What run.json says of the end, as JSON values."""
        return {
            "status": self.status,
            "reason": self.reason,
            "step": self.step,
            "epoch": self.epoch,
            "samples": self.samples,
            "metrics": dict(self.metrics),
            "best": {weights: vars(best) for weights, best in self.best.items()},
            "seconds": round(self.seconds, 3),
        }
