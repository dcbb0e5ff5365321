"""The states of a metric in several processes, merged into what one process would have added up.

torchmetrics can do it itself when it computes, but not where a process saw no batch: it then waits
for a tensor of another shape or type, or for one that never comes. It also makes a collective for
each tensor; here the states of all metrics travel at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat, dim_zero_mean

from plugin_trainer.data.batches import move_batch
from plugin_trainer.data.private_streams import private_streams

_CPU = torch.device("cpu")
_NOTHING = object()


@dataclass(frozen=True)
class State:
    """What one metric has taken in, on the CPU.

    updates  how many times
    values   by name: a tensor, or a list with what each update added
    """

    updates: int
    values: Mapping[str, Any]


def states_of(metric: Metric) -> list[State]:
    """The states of a metric, and of those inside it in their order."""
    return [
        State(its.update_count, {name: _copy(value) for name, value in its.metric_state.items()})
        for its in _within(metric)
    ]


def merge(metric: Metric, given: Sequence[list[State]]) -> None:
    """Give a metric the merged states of all processes, in the order of their numbers.

    A process without an update adds nothing. Lists are put in the order of the updates where batch
    k went to process k mod the number of processes, as an evaluation deals them out. A state whose
    reduction is a mean is weighed by the updates.
    """
    for position, inner in enumerate(_within(metric)):
        having = [states[position] for states in given if states[position].updates]
        for name, value in _merged(inner, having).items():
            setattr(inner, name, value)
        inner._update_count = sum(state.updates for state in having)
        inner.distributed_available_fn = _no


def why_not_mergeable(metric: Metric, arguments: Sequence[Any]) -> str:
    """Why merging would give another value than one process has; empty if it would not.

    Tried with an update that two processes make; leaves the metric reset. What cannot be computed
    of so little data is not found out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a metric may complain of so few rows
        try:
            return _try_merging(metric, arguments)
        finally:
            metric.reset()


def _try_merging(metric: Metric, arguments: Sequence[Any]) -> str:
    metric.reset()
    for inner in _within(metric):
        inner.distributed_available_fn = _no
    with private_streams(0):
        metric.update(*arguments)
    once = states_of(metric)
    with private_streams(0):
        metric.update(*arguments)
    expected = _computed(metric)
    if not isinstance(expected, Tensor):
        return ""
    metric.reset()
    try:
        merge(metric, [once, once])
        with private_streams(0):
            found = metric.compute()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if _are_equal(found, expected):
        return ""
    return f"it would be {_shown(found)} in place of {_shown(expected)}"


def _computed(metric: Metric) -> Any:
    try:
        with private_streams(0):
            return metric.compute()
    except Exception:
        return None


def _are_equal(found: Any, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and torch.allclose(found.double(), expected.double(), rtol=1e-4, equal_nan=True)
    )


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{float(value):.6g}" if value.numel() == 1 else f"a tensor of {tuple(value.shape)}"


def _within(metric: Metric) -> Iterator[Metric]:
    return (module for module in metric.modules() if isinstance(module, Metric))


def _no() -> bool:
    """Say that there is no other process, so that torchmetrics does not gather again."""
    return False


def _copy(value: Any) -> Any:
    return value.detach().clone().cpu() if isinstance(value, Tensor) else move_batch(value, _CPU)


def _merged(metric: Metric, having: Sequence[State]) -> dict[str, Any]:
    lists = [name for name in metric.metric_state if isinstance(metric.metric_state[name], list)]
    # An update may add several entries, or none.
    in_turn = all(len(its.values[name]) == its.updates for its in having for name in lists)
    merged = {}
    for name, reduction in metric._reductions.items():
        values = [its.values[name] for its in having]
        if not values:
            continue
        if isinstance(values[0], list):
            joined = _in_turn(values) if in_turn else list(chain.from_iterable(values))
            value = joined if reduction in (None, dim_zero_cat) else reduction(joined)
        elif len(values) == 1:
            value = values[0]
        else:
            value = _reduced(values, reduction, [its.updates for its in having])
        stays = isinstance(value, list) and metric.compute_on_cpu
        merged[name] = value if stays else move_batch(value, metric.device)
    return merged


def _in_turn(lists: Sequence[list[Any]]) -> list[Any]:
    rounds = zip_longest(*lists, fillvalue=_NOTHING)
    return [entry for entry in chain.from_iterable(rounds) if entry is not _NOTHING]


def _reduced(
    values: Sequence[Tensor], reduction: Callable[[Tensor], Any] | None, updates: Sequence[int]
) -> Any:
    if reduction is dim_zero_mean:
        weighed = [value.double() * count for value, count in zip(values, updates, strict=True)]
        return (torch.stack(weighed).sum(0) / sum(updates)).to(values[0].dtype)
    if reduction is dim_zero_cat:
        return torch.cat([torch.atleast_1d(value) for value in values])
    stacked = torch.stack(list(values))
    return stacked if reduction is None else reduction(stacked)
