"""Several batches answered as one window: what is left of them after a block shares new batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

# B rows of a batch, W rows of the window, T tokens

ROWS = 256
"""A window has so many rows, in whole batches."""

AT_ONCE = 32
"""More rows than this do not go through a block at once on a CPU: their states leave its cache."""


@runtime_checkable
class AnswersWindows(Protocol):
    """A model that may be given several batches at once, to leave early."""

    def answer_window(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What its forward would return for each batch."""
        ...


def windows(batches: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Lists of batches, which have ROWS rows together or more; the last one has what there is."""
    window: list[Mapping[str, Any]] = []
    for batch in batches:
        window.append(batch)
        if sum(len(one["input_ids"]) for one in window) >= ROWS:
            yield window
            window = []
    if window:
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
