"""Weighted means of losses and metrics, kept on the device and read once when they are wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.distributed.world import ALONE, World

# Adding a 0-dim tensor to a sum costs several launches a step; keeping it costs one append. What is
# kept is summed up in one go each time there are this many, and when the means are wanted.
_AT_ONCE = 64

Counted = tuple[list[Tensor], list[int | Tensor]]

Totals = dict[str, tuple[float, float]]
"""By name: the sum of value * count, and that of the counts."""


class Meter:
    """Sums value * count for each name of the outcomes it is given, without reading any of them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}
        self._kept: dict[str, Counted] = {}

    def add(self, outcome: StepOutcome, *, prefix: str = "") -> None:
        """Take in one outcome: its loss, its parts and its metrics, their names behind `prefix`."""
        count = outcome.count
        self.keep(prefix + "loss", outcome.loss, count)
        for name, value in outcome.parts.items():
            self.keep(prefix + name, value, count)
        for name, value in outcome.metrics.items():
            self.keep(prefix + name, value, count)

    def keep(self, name: str, value: Tensor, count: int | Tensor) -> None:
        """Take in one mean over so many items."""
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = ([], [])
        kept[0].append(value.detach())
        kept[1].append(count)
        if len(kept[0]) == _AT_ONCE:
            self._sum_up(name)

    def _sum_up(self, name: str) -> None:
        values, counts = self._kept.pop(name)
        total, count = sum_of_means(values, counts)
        if name in self._sums:
            self._sums[name] += total
            self._counts[name] = self._counts[name] + count
        else:
            self._sums[name], self._counts[name] = total, count

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in since the last reset."""
        return not self._sums and not self._kept

    @property
    def names(self) -> list[str]:
        """What means there are."""
        return [*self._sums, *(name for name in self._kept if name not in self._sums)]

    def means(self, world: World = ALONE) -> dict[str, float]:
        """The mean of each name so far, over all processes. One transfer from the device for all
        of them.
        """
        if world.size > 1:
            return means_of(world.gather(self.totals()))
        names = self._summed_up()
        if not names:
            return {}
        values = torch.stack([self._sums[name] / self._counts[name] for name in names])
        return dict(zip(names, values.tolist(), strict=True))

    def totals(self) -> Totals:
        """What this process has taken in so far, read from the device."""
        names = self._summed_up()
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        counts = torch.stack([torch.as_tensor(self._counts[n], device=sums.device) for n in names])
        return dict(zip(names, zip(sums.tolist(), counts.tolist(), strict=True), strict=True))

    def _summed_up(self) -> list[str]:
        names = self.names
        for name in list(self._kept):
            self._sum_up(name)
        return names

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.clear()
        self._kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far: tensors and numbers.

        What is kept stays apart from what is summed up, or a resumed run would add in another
        order than one that never stopped.
        """
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "kept": {
                name: {"values": torch.stack(values), "counts": _joined(counts)}
                for name, (values, counts) in self._kept.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """Take it back, on the device it is added to."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state["counts"].items()
        }
        self._kept = {
            name: (list(kept["values"].to(device).unbind()), _apart(kept["counts"], device))
            for name, kept in state["kept"].items()
        }


def means_of(given: Sequence[Totals]) -> dict[str, float]:
    """The means over all processes, from the totals of each; added in one order, so that all of
    them have the same to the bit. A process may lack a name.
    """
    names = dict.fromkeys(name for totals in given for name in totals)
    means = {}
    for name in names:
        having = [totals[name] for totals in given if name in totals]
        total, count = sum(its[0] for its in having), sum(its[1] for its in having)
        means[name] = total / count if count else math.nan
    return means


def sum_of_means(values: Sequence[Tensor], counts: Sequence[int | Tensor]) -> tuple[Tensor, Any]:
    """The sum that means over so many items stand for, and how many items that are.

    The mean of no item is NaN and its sum is 0.
    """
    means = torch.stack(list(values))
    if means.dtype not in (torch.float32, torch.float64):
        means = means.float()  # a sum in 16 bits would lose what it is to add up
    joined = _joined(counts)
    if isinstance(joined, Tensor):
        weighted = torch.where(joined == 0, 0, means * joined)
        return weighted.sum(), joined.sum()
    weights = torch.tensor(joined, device=means.device)
    if 0 in joined:
        means = torch.where(weights == 0, 0, means)
    return (means * weights).sum(), sum(joined)


def _joined(counts: Sequence[int | Tensor]) -> Tensor | list[int]:
    """Counts as one tensor if any of them is on a device, else as they are."""
    device = next((count.device for count in counts if isinstance(count, Tensor)), None)
    if device is None:
        return [int(count) for count in counts]
    return torch.stack([torch.as_tensor(count, device=device) for count in counts])


def _apart(counts: Tensor | list[int], device: torch.device) -> list[int | Tensor]:
    return list(counts.to(device).unbind()) if isinstance(counts, Tensor) else list(counts)
