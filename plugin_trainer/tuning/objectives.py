"""What a trial is worth: its evaluations taken in one by one, over all processes that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.watching import is_better, watched


@dataclass(frozen=True)
class Objective:
    """A metric, whether less ("min") or more ("max") of it is better, and which evaluation counts:
    the "best", the "last" or the "mean" of those that were made.
    """

    metric: str
    mode: str
    take: str

    @property
    def direction(self) -> str:
        """As Optuna has it."""
        return "minimize" if self.mode == "min" else "maximize"


class Tally:
    """The evaluations of one trial so far.

    Its state goes into the run's checkpoints, so that a trial that goes on elsewhere goes on
    counting.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = tuple(objectives)
        self.count = 0
        self._best: list[float | None] = [None] * len(self.objectives)
        self._last: list[float] = [math.nan] * len(self.objectives)
        self._sum = [0.0] * len(self.objectives)

    def add(self, metrics: Mapping[str, float]) -> list[float]:
        """Take in an evaluation; the objectives' values in it.

        Raises PtrainError, listing the known metrics, if one is not among them.
        """
        values = [
            float(watched(metrics, its.metric, setting="tune.objectives"))
            for its in self.objectives
        ]
        self.count += 1
        for number, (its, value) in enumerate(zip(self.objectives, values, strict=True)):
            self._last[number] = value
            self._sum[number] += value
            best = self._best[number]
            if math.isfinite(value) and (best is None or is_better(value, best, its.mode)):
                self._best[number] = value
        return values

    def values(self) -> list[float]:
        """What the trial is worth by each objective.

        Raises PtrainError for one that is not finite: that is no result.
        """
        if not self.count:
            raise PtrainError(
                "the run made no evaluation", hint="a search needs validation data and `evaluate`"
            )
        found = []
        for number, its in enumerate(self.objectives):
            best = self._best[number]
            value = {
                "best": math.nan if best is None else best,
                "last": self._last[number],
                "mean": self._sum[number] / self.count,
            }[its.take]
            if not math.isfinite(value):
                raise PtrainError(f"{its.metric} is {value}, by its {its.take} evaluation")
            found.append(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything taken in, as JSON values."""
        return {
            "count": self.count,
            "best": self._best,
            "last": self._last,
            "sum": self._sum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.count = int(state["count"])
        self._best, self._last = list(state["best"]), list(state["last"])
        self._sum = list(state["sum"])
