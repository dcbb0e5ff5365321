"""Weighted means of losses and metrics, kept on the device and read once when they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.outcome import StepOutcome


class Meter:
    """Sums value * count for each name of the outcomes it is given, without reading any of them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}

    def add(self, outcome: StepOutcome) -> None:
        """Take in one outcome: its loss, its parts and its metrics."""
        self._add("loss", outcome.loss, outcome.count)
        for name, value in outcome.parts.items():
            self._add(name, value, outcome.count)
        for name, value in outcome.metrics.items():
            self._add(name, value, outcome.count)

    def _add(self, name: str, value: Tensor, count: int | Tensor) -> None:
        total = weighted(value.detach().float(), count)
        if name in self._sums:
            self._sums[name] += total
            self._counts[name] = self._counts[name] + count
        else:
            self._sums[name] = total
            # Not the outcome's own tensor: it is about to be added to.
            self._counts[name] = count.clone() if isinstance(count, Tensor) else count

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in since the last reset."""
        return not self._sums

    def means(self) -> dict[str, float]:
        """The mean of each name so far. One transfer from the device for all of them."""
        if not self._sums:
            return {}
        values = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
        return dict(zip(self._sums, values.tolist(), strict=True))

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """What is summed so far: tensors and numbers."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """Take the sums back, on the device they are added to."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state["counts"].items()
        }


def weighted(mean: Tensor, count: int | Tensor) -> Tensor:
    """The sum that a mean over `count` items stands for; the mean of none is NaN, its sum is 0."""
    if isinstance(count, Tensor):
        return torch.where(count == 0, 0, mean * count)
    return mean * count if count else torch.zeros_like(mean)
