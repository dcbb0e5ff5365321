"""Several batches answered as one window: what is left of them after a block shares new batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

# B rows of a batch, W rows of the window, T tokens

BATCHES = 8
"""How many batches make a window."""


@runtime_checkable
class AnswersWindows(Protocol):
    """A model that may be given several batches at once, to leave early."""

    def answer_window(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What its forward would return for each batch."""
        ...


def windows(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many batches, the last one of what there is."""
    remaining = iter(batches)
    while window := list(islice(remaining, size)):
        yield window


def merged(batches: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Tensor]:
    """The batches' tensors [B, T] of these names as one [W, T], as far as all batches have them.

    Padded with zeros, which the attention mask must have there, too.
    """
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        name: _stacked([batch[name] for batch in batches], longest)
        for name in names
        if all(batch.get(name) is not None for batch in batches)
    }


def _stacked(parts: Sequence[Tensor], longest: int) -> Tensor:
    return torch.cat([F.pad(part_BT, (0, longest - part_BT.shape[1])) for part_BT in parts])
