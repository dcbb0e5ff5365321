"""The order of samples: a pure function of seed, task, epoch and position."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some values in the order of their positions, looked up when they are asked for."""

    values: Sequence[Any]
    positions: Tensor

    def __getitem__(self, key: int | slice) -> Any:
        """One value, or a list of them."""
        if isinstance(key, slice):
            return [self.values[position] for position in self.positions[key].tolist()]
        return self.values[int(self.positions[key])]


Indices: TypeAlias = Tensor | array | range | list | tuple | Chosen
"""The indices of one epoch in their order, as compactly as they come: ten million of them take
80 MB in a tensor and 400 MB in a list."""


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed from several parts; different parts give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class SeededBatch:
    """The indices of one batch, and the seed of whatever is drawn while it is loaded."""

    seed: int
    indices: Any


@dataclass(eq=False)
class EpochBatches:
    """A sampler of the batches of one epoch from a cursor on. The engine sets `epoch` and `start`.

    order       the indices of an epoch
    size        how many those are
    batch_size  None takes the indices one by one, not in lists
    with_seeds  yield SeededBatch instead of plain indices, for loaders whose workers must not
                depend on which batches they loaded before
    limit       no more batches an epoch than this
    """

    order: Callable[[int], Indices]
    size: int
    batch_size: int | None
    drop_last: bool
    seed: int
    task: str = ""
    with_seeds: bool = False
    limit: int | None = None
    epoch: int = 0
    start: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in a whole epoch."""
        size, batch_size = self.size, self.batch_size or 1
        batches = size // batch_size if self.drop_last else -(-size // batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __len__(self) -> int:
        return self.per_epoch - self.start

    def __iter__(self) -> Iterator[Any]:
        # The cursor is read here, and not when the first batch is asked for: it may have moved on.
        return self._from(self.start, self.epoch)

    def _from(self, start: int, epoch: int) -> Iterator[Any]:
        order = self.order(epoch)
        for position in range(start, self.per_epoch):
            indices = self._at(order, position)
            if self.with_seeds:
                yield SeededBatch(derive_seed(self.seed, self.task, epoch, position), indices)
            else:
                yield indices

    def _at(self, order: Indices, position: int) -> Any:
        """The indices of one batch as a list, or one index."""
        if self.batch_size is None:
            return order[position].item() if isinstance(order, Tensor) else order[position]
        taken = order[position * self.batch_size : (position + 1) * self.batch_size]
        return taken.tolist() if isinstance(taken, (Tensor, array)) else list(taken)
