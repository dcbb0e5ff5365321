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
from plugin_trainer.training.meter import Meter


class TaskShares:
    """The means and sums of each task, from the batches that are labelled with one."""

    def __init__(self) -> None:
        self._losses: dict[str, Meter] = {}
        self._samples: dict[str, int] = {}
        self._norms = Meter()
        self._steps: dict[str, int] = {}

    def add(self, batch: Any, outcome: StepOutcome) -> None:
        """Take in one batch's outcome."""
        task = batch[TASK]
        self._losses.setdefault(task, Meter()).add(outcome)
        self._samples[task] = self._samples.get(task, 0) + count_rows(batch)

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
        return not self._losses

    def means(self) -> dict[str, float]:
        """`loss`, the mean of the tasks' losses, and by task `<task>/loss`, its parts,
        `<task>/samples` and `<task>/grad_norm_share`.

        The share is that of the sum of gradient norms over steps of one task alone; it is left out
        where no step was.
        """
        by_task = {task: meter.means() for task, meter in self._losses.items()}
        entries = {"loss": sum(means["loss"] for means in by_task.values()) / len(by_task)}
        norms = self._norms.means()
        sums = {task: mean * self._steps[task] for task, mean in norms.items()}
        total = sum(sums.values())
        for task, means in by_task.items():
            entries.update({f"{task}/{name}": value for name, value in means.items()})
            entries[f"{task}/samples"] = self._samples[task]
            if total > 0:
                entries[f"{task}/grad_norm_share"] = sums.get(task, 0.0) / total
        return entries

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far."""
        return {
            "losses": {task: meter.state_dict() for task, meter in self._losses.items()},
            "samples": dict(self._samples),
            "norms": self._norms.state_dict(),
            "steps": dict(self._steps),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """Take it back, on the device it is added to."""
        self.reset()
        for task, losses in state["losses"].items():
            self._losses[task] = Meter()
            self._losses[task].load_state_dict(losses, device=device)
        self._samples = dict(state["samples"])
        self._norms.load_state_dict(state["norms"], device=device)
        self._steps = dict(state["steps"])
