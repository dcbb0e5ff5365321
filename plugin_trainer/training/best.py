"""Which evaluation was the best so far, for one weight set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugin_trainer.watching import is_better, watched


@dataclass
class Best:
    """The best value of a metric and the step it was seen at.

    A non-finite value is never a best.
    """

    watch: str
    mode: str
    value: float | None = None
    step: int = 0

    def improved_by(self, metrics: Mapping[str, float], *, step: int) -> bool:
        """Take in an evaluation; whether it is the best one now.

        Raises PtrainError, listing the known metrics, if the watched one is not among them.
        """
        value = watched(metrics, self.watch, setting="best.watch")
        if not math.isfinite(value) or not (
            self.value is None or is_better(value, self.value, self.mode)
        ):
            return False
        self.value, self.step = value, step
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"watch": self.watch, "mode": self.mode, "value": self.value, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the best so far back, unless it was measured by something else."""
        if (state["watch"], state["mode"]) == (self.watch, self.mode):
            self.value, self.step = state["value"], state["step"]
