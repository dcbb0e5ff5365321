"""How fast a run is: samples a second, and tokens where the batches tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from plugin_trainer.data.batches import count_rows
from plugin_trainer.training.distributed.world import ALONE, World

MASK = "attention_mask"
"""The entry of a batch whose ones are its tokens, padding left out."""


class Speed:
    """Counts what was trained on since the last reset, by all processes.

    Every process knows the samples of all. The tokens of its own batches are summed up without
    being read, and added to those of the others when they are logged.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._tokens: Tensor | None = None

    def count(self, micro_batches: Sequence[Any], *, samples: int | None = None) -> int:
        """Count the micro-batches of a step; how many samples they hold.

        samples  those of all processes; left out, these batches are all there are
        """
        if samples is None:
            samples = sum(map(count_rows, micro_batches))
        for batch in micro_batches:
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

    def per_second(self, seconds: float, world: World = ALONE) -> dict[str, float]:
        """`samples_per_second`, and `tokens_per_second` where they are known.

        seconds  this process's: all make their steps together
        """
        own = None if self._tokens is None else float(self._tokens)
        known = [tokens for tokens in world.gather(own) if tokens is not None]
        if seconds <= 0:
            return {}
        speeds = {"samples_per_second": round(self._samples / seconds, 2)}
        if known:
            speeds["tokens_per_second"] = round(sum(known) / seconds, 2)
        return speeds
