"""What each task of a mixture gave since the last log line: loss, samples, share of the gradient.

Nothing is read from a device before it is logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import count_rows
from plugin_trainer.data.mixture import TASK
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.metrics.running_mean import Meter, means_of


class TaskShares:
    """The means and sums of each task, from the batches that are labelled with one."""

    def __init__(self) -> None:
        # One meter for all, for each has one transfer from the device; a task has no "/" in it.
        self._means = Meter()
        self._samples: dict[str, int] = {}
        self._norms = Meter()
        self._steps: dict[str, int] = {}

    def add(self, batch: Any, outcome: StepOutcome) -> None:
        """Take in one batch's outcome."""
        task = batch[TASK]
        self._samples[task] = self._samples.get(task, 0) + count_rows(batch)
        self._means.add(outcome, prefix=f"{task}/")

    def add_step(self, micro_batches: Sequence[Any], grad_norm: Tensor) -> None:
        """Take in the gradient norm of a step, before clipping, if all of it is of one task."""
        tasks = {batch[TASK] for batch in micro_batches}
        if len(tasks) == 1:
            task = tasks.pop()
            self._norms.keep(task, grad_norm, 1)
            self._steps[task] = self._steps.get(task, 0) + 1

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in since the last reset."""
        return not self._samples

    def means(self, world: World = ALONE) -> dict[str, float]:
        """Over all processes: `loss`, the mean of the tasks' losses, and by task `<task>/loss`, its
        parts, `<task>/samples` and `<task>/grad_norm_share`.

        The share is that of the sum of gradient norms over steps of one task alone; it is left out
        where no step was. Empty if none of the processes took in anything.
        """
        means, samples_of = self._gathered(world)
        if not samples_of:
            return {}
        losses = [means[f"{task}/loss"] for task in samples_of]
        # A step's gradient is that of all processes: each knows its norm.
        sums = {task: mean * self._steps[task] for task, mean in self._norms.means().items()}
        total = sum(sums.values())
        entries = {"loss": sum(losses) / len(losses)}
        by_task: dict[str, dict[str, float]] = {task: {} for task in samples_of}
        for name, mean in means.items():
            by_task[name.partition("/")[0]][name] = mean
        for task, samples in samples_of.items():
            entries.update(by_task[task])
            entries[f"{task}/samples"] = samples
            if total > 0:
                entries[f"{task}/grad_norm_share"] = sums.get(task, 0.0) / total
        return entries

    def _gathered(self, world: World) -> tuple[dict[str, float], dict[str, int]]:
        """The means and the samples of all processes. A process may have seen fewer tasks."""
        if world.size == 1:
            return self._means.means(), self._samples
        given = world.gather((self._means.totals(), self._samples))
        samples: dict[str, int] = {}
        for _, its in given:
            for task, count in its.items():
                samples[task] = samples.get(task, 0) + count
        return means_of([totals for totals, _ in given]), samples

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far."""
        return {
            "means": self._means.state_dict(),
            "samples": dict(self._samples),
            "norms": self._norms.state_dict(),
            "steps": dict(self._steps),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """Take it back, on the device it is added to."""
        self._means.load_state_dict(state["means"], device=device)
        self._samples = dict(state["samples"])
        self._norms.load_state_dict(state["norms"], device=device)
        self._steps = dict(state["steps"])
