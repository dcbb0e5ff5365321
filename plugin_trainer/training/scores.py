"""What an evaluation adds up: mean losses and metrics, of each task where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import find_labels
from plugin_trainer.data.mixture import TASK
from plugin_trainer.data.module import Fed
from plugin_trainer.errors import PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.meter import Meter

_ALL = ""
"""The one task of data that has none."""


class Scores:
    """The losses and the data module's metrics over a split, fresh and on the device.

    tasks    the tasks of the split; none if its data is not by task
    label    the batch's key that holds the labels; empty to look for it
    overall  the metrics whose mean is `overall`

    Names are "loss" and "accuracy", or "<head>/accuracy"; with tasks "<task>/loss" and so on, and
    "loss" is the mean of the tasks' losses.
    """

    def __init__(
        self,
        data: Any,
        device: torch.device,
        *,
        tasks: Sequence[str] = (),
        label: str = "",
        overall: Sequence[str] = (),
    ) -> None:
        self._by_task = bool(tasks)
        self._overall = tuple(overall)
        self._meters = {task: Meter() for task in tasks or [_ALL]}
        offered: Mapping[str, Any] = data.metrics() if hasattr(data, "metrics") else {}
        offered = _only_tasks(offered, tasks) if self._by_task else {_ALL: offered}
        self._metrics = {
            task: dict(_flat(metrics, device, label=label)) for task, metrics in offered.items()
        }

    def add(self, batch: Any, outcome: StepOutcome) -> None:
        """Take in one batch that was put through the model."""
        task = batch[TASK] if self._by_task else _ALL
        self._meters[task].add(outcome)
        for name, fed in self._metrics.get(task, {}).items():
            fed.metric.update(*_arguments(_joined(task, name), fed, outcome, batch))

    def check_overall(self) -> None:
        """Raise PtrainError for a member of `overall` that is no metric here."""
        known = [
            _joined(task, name)
            for task, meter in self._meters.items()
            for name in (*meter.names, *self._metrics.get(task, {}))
        ]
        unknown = [name for name in self._overall if name not in known]
        if unknown:
            raise PtrainError(
                f"overall: there is no metric {', '.join(map(repr, unknown))}",
                hint=f"there are: {', '.join(known)}",
            )

    def values(self) -> dict[str, float]:
        """Every number by its name. `overall` is among them if all of its members are."""
        values = {}
        for task, meter in self._meters.items():
            means = {**meter.means()}
            means.update({name: _number(fed) for name, fed in self._metrics.get(task, {}).items()})
            values.update({_joined(task, name): value for name, value in means.items()})
        if self._by_task:
            losses = [values[_joined(task, "loss")] for task in self._meters]
            values = {"loss": sum(losses) / len(losses), **values}
        if self._overall and all(name in values for name in self._overall):
            chosen = [values[name] for name in self._overall]
            values["overall"] = sum(chosen) / len(chosen)
        return values


def _joined(task: str, name: str) -> str:
    return f"{task}/{name}" if task else name


def _only_tasks(offered: Mapping[str, Any], tasks: Sequence[str]) -> Mapping[str, Any]:
    """The metrics of the split's tasks, from those of all tasks."""
    by_task = {name: value for name, value in offered.items() if isinstance(value, Mapping)}
    if len(by_task) != len(offered):
        without = ", ".join(name for name in offered if name not in by_task)
        raise PtrainError(
            f"the data has several tasks, and metrics() gave {without} for none of them",
            hint="return them by task: {task: {name: metric}}, or {task: {head: {name: metric}}}",
        )
    return {task: by_task[task] for task in tasks if task in by_task}


def _flat(offered: Mapping[str, Any], device: torch.device, *, label: str) -> Iterator[Any]:
    """Each metric under its flat name, fresh, on the device."""
    for name, value in offered.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner_name, metric in inner:
            fed = _fed(metric, head=name if inner_name else "", label=label)
            fed.metric.to(device)
            fed.metric.reset()
            yield f"{name}/{inner_name}" if inner_name else name, fed


def _fed(metric: Any, *, head: str, label: str) -> Fed:
    if isinstance(metric, Fed):
        return metric
    return Fed(metric, feed=partial(_logits_and_labels, head=head, label=label))


def _logits_and_labels(
    outputs: Mapping[str, Any], batch: Any, *, head: str, label: str
) -> tuple[Any, Any]:
    """The usual feed of a metric: the logits and the labels, of one head if there are several."""
    found = find_labels(batch, key=label)
    if found is None or "logits" not in outputs:
        missing = "labels in the batch" if found is None else "logits among the outputs"
        raise PtrainError(
            f"it cannot be fed: there are no {missing}",
            hint="give it as Fed(metric, feed=lambda outputs, batch: (predictions, targets))",
        )
    logits, labels = outputs["logits"], found[1]
    if head and isinstance(logits, Mapping):
        logits = logits[head]
    if head and isinstance(labels, Mapping):
        labels = labels[head]
    return logits, labels


def _arguments(name: str, fed: Fed, outcome: StepOutcome, batch: Any) -> tuple[Any, ...]:
    try:
        return tuple(fed.feed(outcome.outputs, batch))
    except PtrainError as error:
        raise PtrainError(f"metric '{name}': {error.message}", hint=error.hint) from None


def _number(fed: Fed) -> float:
    value = fed.metric.compute()
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    raise PtrainError(
        f"the metric {type(fed.metric).__name__} computes {type(value).__name__}, not one number",
        hint="use average='macro' or 'micro', or give one metric a number",
    )
