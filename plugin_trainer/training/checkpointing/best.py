"""Which evaluation was the best so far, for one weight set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plugin_trainer.watching import is_better, watched


@dataclass
class Best:
    """The best value of a metric, the step it was seen at and its whole evaluation.

    A non-finite value is never a best. Of equal values the newest is, or with `keep_first` the
    oldest.
    """

    watch: str
    mode: str
    value: float | None = None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    keep_first: bool = False

    def improved_by(self, metrics: Mapping[str, float], *, step: int) -> bool:
        """Take in an evaluation; whether it is the best one now.

        Raises PtrainError, listing the known metrics, if the watched one is not among them.
        """
        value = watched(metrics, self.watch, setting="best.watch")
        if not math.isfinite(value):
            return False
        is_equal = value == self.value and not self.keep_first
        if self.value is not None and not (is_equal or is_better(value, self.value, self.mode)):
            return False
        self.value, self.step, self.metrics = value, step, dict(metrics)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {
            "watch": self.watch,
            "mode": self.mode,
            "value": self.value,
            "step": self.step,
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the best so far back, unless it was measured by something else."""
        if (state["watch"], state["mode"]) == (self.watch, self.mode):
            self.value, self.step = state["value"], state["step"]
            self.metrics = dict(state.get("metrics", {}))
