"""The learning rate over the run: a warm-up in front of any scheduler, and core's own three."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from plugin_trainer.settings.schedules import DecaySettings, NoSettings
from plugin_trainer.watching import watched


class Schedule:
    """A scheduler behind a linear warm-up.

    At step s of the warm-up's W (s = 0 for the first) the rate is base * (f + (1 - f) * s / W) with
    f the start factor. From step W on it is the scheduler's, which has not moved until then.
    ReduceLROnPlateau moves with the evaluations after the warm-up, by the metric `watch`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        *,
        warmup_steps: int,
        start_factor: float,
        watch: str = "",
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._warmup_steps = warmup_steps
        self._start_factor = start_factor
        self._watch = watch
        self._on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self._first_rates = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        if warmup_steps:
            self._set_rates()

    @property
    def watch(self) -> str:
        """The metric by which it moves; empty if it moves with the steps."""
        return self._watch if self._on_plateau else ""

    def step(self) -> None:
        """Advance by one optimizer step."""
        self.steps += 1
        if self.steps <= self._warmup_steps:
            self._set_rates()
        elif not self._on_plateau:
            self._scheduler.step()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Advance by one evaluation. Raises PtrainError if the watched metric is not among them."""
        if self._on_plateau and self.steps >= self._warmup_steps:
            self._scheduler.step(watched(metrics, self._watch, setting="schedule.watch"))

    def _set_rates(self) -> None:
        share = self.steps / self._warmup_steps
        factor = self._start_factor + (1 - self._start_factor) * share
        for group, rate in zip(self._optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        """The count of steps, and the scheduler's own state."""
        return {"steps": self.steps, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, anew: bool = False) -> None:
        """Take the state back. The optimizer's own state brings the current rates.

        anew  the settings have changed: go to the same step of the schedule as it is now, in place
              of taking over where the other one stood
        """
        self.steps = state["steps"]
        if anew:
            self._go_to_step(state["scheduler"])
        else:
            self._scheduler.load_state_dict(dict(state["scheduler"]))

    def _go_to_step(self, before: Mapping[str, Any]) -> None:
        if self._on_plateau and "num_bad_epochs" in before:
            # Where a plateau stands follows from evaluations, not from steps. Its rates are the
            # optimizer's.
            kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
            self._scheduler.load_state_dict({key: before[key] for key in kept})
            return
        for group, rate in zip(self._optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = rate
        if 0 < self.steps <= self._warmup_steps:
            self._set_rates()
        elif not self._on_plateau:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it takes this for steps without an optimizer's
                for _ in range(self.steps - self._warmup_steps):
                    self._scheduler.step()


def linear(
    optimizer: torch.optim.Optimizer, settings: DecaySettings, total_steps: int
) -> LRScheduler:
    """A straight line from the learning rate down to its final share after `total_steps`."""
    final = settings.final_factor

    def factor(step: int) -> float:
        return 1.0 - (1.0 - final) * min(step / max(total_steps, 1), 1.0)

    return LambdaLR(optimizer, factor)


def cosine(
    optimizer: torch.optim.Optimizer, settings: DecaySettings, total_steps: int
) -> LRScheduler:
    """Half a cosine from the learning rate down to its final share after `total_steps`."""
    final = settings.final_factor

    def factor(step: int) -> float:
        share = min(step / max(total_steps, 1), 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def constant(
    optimizer: torch.optim.Optimizer, settings: NoSettings, total_steps: int
) -> LRScheduler:
    """The learning rate as it is."""
    del settings, total_steps
    return LambdaLR(optimizer, lambda _: 1.0)
