"""The learning rate over the run: a warm-up in front of any scheduler, and core's own three."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from plugin_trainer.cadence import Recurrence
from plugin_trainer.settings.schedules import DecaySettings, NoSettings
from plugin_trainer.watching import watched

EVERY_STEP = Recurrence(Fraction(1))


class Schedule:
    """A scheduler behind a linear warm-up.

    At step s of the warm-up's W (s = 0 for the first) the rate is base * (f + (1 - f) * s / W) with
    f the start factor. From step W on it is the scheduler's, which has not moved until then; it
    makes a step of its own at every step that `every` says, and none after the last of the plan.
    ReduceLROnPlateau moves with the evaluations after the warm-up, by the metric `watch`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        *,
        warmup_steps: int,
        start_factor: float,
        every: Recurrence = EVERY_STEP,
        total_steps: int | None = None,
        watch: str = "",
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._warmup_steps = warmup_steps
        self._start_factor = start_factor
        self._every = every
        self._total_steps = total_steps
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
        elif not self._on_plateau and self._moves_at(self.steps):
            self._scheduler.step()

    def _moves_at(self, step: int) -> bool:
        # Epochs that turn out longer than the plan go on at the last rate: some classes of torch
        # refuse a step after their last.
        is_planned = self._total_steps is None or step <= self._total_steps
        return is_planned and self._every.is_due(step)

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
                for step in range(self._warmup_steps + 1, self.steps + 1):
                    if self._moves_at(step):
                        self._scheduler.step()


_LOOKED_AT = 1000


def falls_at(
    make: Callable[[torch.optim.Optimizer], LRScheduler],
    optimizer: torch.optim.Optimizer,
    *,
    within: int,
) -> int | None:
    """After how many steps, of so many, the rates have fallen to 1 % of the highest; None if not.

    make  a scheduler for an optimizer; it is tried on another one with these rates
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    tried = torch.optim.SGD([{"params": [torch.zeros(())], "lr": rate} for rate in rates])
    scheduler, highest = make(tried), 0.0
    if isinstance(scheduler, ReduceLROnPlateau):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer makes no steps
        for step in range(min(within, _LOOKED_AT)):
            rate = max(group["lr"] for group in tried.param_groups)
            highest = max(highest, rate)
            if rate < 0.0101 * highest:  # 0.1 * 0.1 is a little more than 0.01
                return step
            scheduler.step()
    return None


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
