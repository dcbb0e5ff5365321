"""What an evaluation adds up: mean losses and metrics, of each task where there are several."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import find_labels
from plugin_trainer.data.mixture import TASK
from plugin_trainer.data.module import Fed
from plugin_trainer.errors import PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.registry.blame import what_and_where
from plugin_trainer.settings.validation import unknown
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.metrics.probabilities import for_metric
from plugin_trainer.training.metrics.running_mean import Meter, means_of
from plugin_trainer.training.model.forward import Forward

_ALL = ""
"""The one task of data that has none."""


class Scores:
    """The losses and the data module's metrics over a split, fresh and on the device.

    tasks    the tasks of the split; none if its data is not by task
    label    the batch's key that holds the labels; empty to look for it
    overall  the metrics whose mean is `overall`
    forward  says whether the logits are some; left out, torchmetrics looks at their values

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
        forward: Forward | None = None,
    ) -> None:
        self._by_task = bool(tasks)
        self._overall = tuple(overall)
        self._meters = {task: Meter() for task in tasks or [_ALL]}
        offered = _offered(data)
        offered = _only_tasks(offered, tasks) if self._by_task else {_ALL: offered}
        fed: dict[int, Fed] = {}
        self._metrics = {
            task: dict(_flat(metrics, device, label=label, task=task, seen=fed, forward=forward))
            for task, metrics in offered.items()
        }

    def add(self, batch: Any, outcome: StepOutcome) -> None:
        """Take in one batch that was put through the model."""
        task = batch[TASK] if self._by_task else _ALL
        self._meters[task].add(outcome)
        for name, fed in self._metrics.get(task, {}).items():
            fed.metric.update(*_arguments(_joined(task, name), fed, outcome, batch))

    def check_merging(self, batch: Any, outcome: StepOutcome) -> None:
        """Raise PtrainError for a metric that several processes cannot compute together, as far as
        one batch tells. The metrics of its task are reset.
        """
        from plugin_trainer.training.metrics.metric_sync import why_not_mergeable

        task = batch[TASK] if self._by_task else _ALL
        for name, fed in self._metrics.get(task, {}).items():
            arguments = _arguments(_joined(task, name), fed, outcome, batch)
            if because := why_not_mergeable(fed.metric, arguments):
                raise PtrainError(
                    f"the metric '{_joined(task, name)}' cannot be merged over several processes: "
                    f"{because}",
                    hint="keep all that it adds up in states, add_state(..., dist_reduce_fx=...), "
                    "or train in one process",
                )

    def check_names(self) -> None:
        """Raise PtrainError for a metric that is called as a part of the loss is."""
        for task, meter in self._meters.items():
            if both := [name for name in self._metrics.get(task, {}) if name in meter.names]:
                raise PtrainError(
                    f"metrics() gave '{_joined(task, both[0])}', and the loss has a part or a "
                    "metric of that name",
                    hint="give the metric another name",
                )

    def check_numbers(self) -> None:
        """Raise PtrainError for a metric that gives no number, and for a function among them that
        takes no logits and labels. What else one raises may be of the few rows that it has so far.
        """
        fed_by_name = {
            _joined(task, name): fed
            for task, metrics in self._metrics.items()
            for name, fed in metrics.items()
            if fed.metric.update_called
        }
        for name, fed in fed_by_name.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of few rows
                    _number(name, fed)
            except PtrainError:
                raise
            except Exception as error:
                if is_function(fed.metric) and isinstance(error, TypeError):
                    raise PtrainError(
                        f"the metric '{name}' failed", hint=[*what_and_where(error), _FUNCTION]
                    ) from error

    def check_overall(self) -> None:
        """Raise PtrainError for a member of `overall` that is no metric here."""
        known = self._own_names()
        missing = [name for name in self._overall if name not in known]
        if missing:
            raise PtrainError(
                f"overall: there is no metric {', '.join(map(repr, missing))}",
                hint=[
                    *(f"'{name}': {unknown(name, known, what='metric')}" for name in missing),
                    f"there are: {', '.join(known)}",
                ],
            )

    @property
    def names(self) -> list[str]:
        """What values there would be of the batches so far."""
        own = self._own_names()
        overall = ["overall"] if self._has_overall(own) else []
        return [*(["loss"] if self._by_task else []), *own, *overall]

    def _own_names(self) -> list[str]:
        """Those of losses and metrics, without what is computed of them."""
        return [
            _joined(task, name)
            for task, meter in self._meters.items()
            for name in (*meter.names, *self._metrics.get(task, {}))
        ]

    def _has_overall(self, names: Container[str]) -> bool:
        return bool(self._overall) and all(name in names for name in self._overall)

    def values(self, world: World = ALONE) -> dict[str, float]:
        """Every number by its name, over the batches of all processes. `overall` is among them if
        all of its members are.
        """
        means_by_task = self._merged(world)
        values = {}
        for task, means in means_by_task.items():
            metrics = self._metrics.get(task, {})
            means.update({name: _number(_joined(task, name), fed) for name, fed in metrics.items()})
            values.update({_joined(task, name): value for name, value in means.items()})
        if self._by_task:
            losses = [values[_joined(task, "loss")] for task in self._meters]
            values = {"loss": sum(losses) / len(losses), **values}
        if self._has_overall(values):
            chosen = [values[name] for name in self._overall]
            values["overall"] = sum(chosen) / len(chosen)
        return values

    def _merged(self, world: World) -> dict[str, dict[str, float]]:
        """The means of each task. The metrics have the updates of all processes from now on."""
        if world.size == 1:
            return {task: meter.means() for task, meter in self._meters.items()}
        from plugin_trainer.training.metrics.metric_sync import merge, states_of

        totals = {task: meter.totals() for task, meter in self._meters.items()}
        states = {
            task: {name: states_of(fed.metric) for name, fed in metrics.items()}
            for task, metrics in self._metrics.items()
        }
        given = world.gather((totals, states))
        for task, metrics in self._metrics.items():
            for name, fed in metrics.items():
                merge(fed.metric, [its[task][name] for _, its in given])
        return {task: means_of([its[task] for its, _ in given]) for task in self._meters}


def check_metrics(data: Any, *, tasks: Collection[str]) -> None:
    """Raise PtrainError for metrics of a task that no data is of, of which none would ever be seen.

    tasks  those of all splits, training too
    """
    for task, metrics in _offered(data).items():
        if isinstance(metrics, Mapping) and task not in tasks:
            raise PtrainError(f"metrics() gave '{task}': {unknown(task, tasks, what='task')}")


def _offered(data: Any) -> Mapping[str, Any]:
    offered = data.metrics() if hasattr(data, "metrics") else {}
    if not isinstance(offered, Mapping):
        raise PtrainError(
            f"metrics() gave a {type(offered).__name__}, not metrics by name",
            hint='return {"accuracy": ...}',
        )
    return offered


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


def _flat(
    offered: Mapping[str, Any],
    device: torch.device,
    *,
    label: str,
    task: str,
    seen: dict[int, Fed],
    forward: Forward | None,
) -> Iterator[Any]:
    """Each metric under its flat name, fresh, on the device.

    seen  the metrics before, by identity: one that stands under two names would add up both
    """
    for name, value in offered.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner_name, metric in inner:
            full_name = f"{name}/{inner_name}" if inner_name else name
            if isinstance(metric, Mapping):
                raise PtrainError(
                    f"metrics() nests '{_joined(task, full_name)}' too deep for its data",
                    hint="data of one task has {name: metric} or {head: {name: metric}}; data of "
                    "several, given as {task: loader}, the same for each task",
                )
            head = name if inner_name else ""
            fed = _fed(metric, head=head, label=label, forward=forward)
            if id(fed.metric) in seen:
                fed = Fed(deepcopy(fed.metric), feed=fed.feed)
            seen[id(fed.metric)] = fed
            fed.metric.to(device)
            fed.metric.reset()
            yield full_name, fed


def _fed(metric: Any, *, head: str, label: str, forward: Forward | None) -> Fed:
    if isinstance(metric, Fed):
        return metric
    if isinstance(metric, type) or not callable(metric):
        kind = metric.__name__ if isinstance(metric, type) else type(metric).__name__
        raise PtrainError(
            f"the metric '{kind}' is no metric",
            hint=f"make one of the class: {kind}()"
            if isinstance(metric, type)
            else "give a metric of torchmetrics, or a function of logits and labels",
        )
    if not hasattr(metric, "update"):
        from plugin_trainer.training.metrics.function_metric import FunctionMetric

        metric = FunctionMetric(metric)

    def feed(outputs: Mapping[str, Any], batch: Any) -> tuple[Any, Any]:
        logits, labels = _logits_and_labels(outputs, batch, head=head, label=label)
        activation = forward.activation if forward is not None else ""
        return for_metric(metric, logits, activation), labels

    return Fed(metric, feed=feed)


def _logits_and_labels(
    outputs: Mapping[str, Any], batch: Any, *, head: str, label: str
) -> tuple[Any, Any]:
    """The usual feed of a metric: the logits and the labels, of one head if there are several."""
    own = f"labels_{head}"
    has_own = bool(head) and isinstance(batch, Mapping) and own in batch
    found = (own, batch[own]) if has_own else find_labels(batch, key=label)
    if found is None or "logits" not in outputs:
        missing = "labels in the batch" if found is None else "logits among the outputs"
        raise PtrainError(
            f"it cannot be fed: there are no {missing}",
            hint="give it as Fed(metric, feed=lambda outputs, batch: (predictions, targets))",
        )
    return (
        _of_head(outputs["logits"], head, what="logits"),
        _of_head(found[1], head, what="labels"),
    )


def _of_head(values: Any, head: str, *, what: str) -> Any:
    """What a metric of a head, or of no named one, takes of logits or labels that may be by head.

    Raises PtrainError if it cannot be told.
    """
    if not isinstance(values, Mapping):
        return values
    if head in values:
        return values[head]
    if not head and len(values) == 1:
        return next(iter(values.values()))
    heads = ", ".join(f"'{name}'" for name in values)
    raise PtrainError(
        f"it cannot be fed: there are {what} of {heads}, and "
        + (f"none of the head '{head}'" if head else "it is of no head"),
        hint="metrics() gives metrics of heads by head: {head: {name: metric}}",
    )


def _arguments(name: str, fed: Fed, outcome: StepOutcome, batch: Any) -> tuple[Any, ...]:
    try:
        return tuple(fed.feed(outcome.outputs, batch))
    except PtrainError as error:
        raise PtrainError(f"metric '{name}': {error.message}", hint=error.hint) from None


_FUNCTION = "a function takes logits and labels of all rows, and gives one number"


def is_function(metric: Any) -> bool:
    """Whether a metric is a plain function's."""
    return type(metric).__name__ == "FunctionMetric"


def _number(name: str, fed: Fed) -> float:
    value = fed.metric.compute()
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    what = f"a tensor of {value.numel()}" if isinstance(value, Tensor) else type(value).__name__
    raise PtrainError(
        f"the metric '{name}' ({type(fed.metric).__name__}) gives {what}, not one number",
        hint=_FUNCTION
        if is_function(fed.metric)
        else "use average='macro' or 'micro', or give one metric a number",
    )
