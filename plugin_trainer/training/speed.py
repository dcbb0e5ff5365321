"""How fast a run is: samples a second, and tokens where the batches tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from plugin_trainer.data.batches import count_rows

MASK = "attention_mask"
"""The entry of a batch whose ones are its tokens, padding left out."""


class Speed:
    """Counts what was trained on since the last reset. Tokens are summed up without being read."""

    def __init__(self) -> None:
        self._samples = 0
        self._tokens: Tensor | None = None

    def count(self, micro_batches: Sequence[Any]) -> int:
        """Count the micro-batches of a step; how many samples they hold."""
        samples = 0
        for batch in micro_batches:
            samples += count_rows(batch)
            mask = batch.get(MASK) if isinstance(batch, Mapping) else None
            if isinstance(mask, Tensor):
                tokens = mask.sum()
                self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self._samples += samples
        return samples

    def reset(self) -> None:
        """Count from nothing again."""
        self._samples = 0
        self._tokens = None

    def per_second(self, seconds: float) -> dict[str, float]:
        """`samples_per_second`, and `tokens_per_second` where they are known."""
        if seconds <= 0:
            return {}
        speeds = {"samples_per_second": round(self._samples / seconds, 2)}
        if self._tokens is not None:
            speeds["tokens_per_second"] = round(float(self._tokens) / seconds, 2)
        return speeds
