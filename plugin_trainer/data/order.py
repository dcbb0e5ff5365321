"""The order of samples: a pure function of seed, task, epoch and position."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from plugin_trainer.data.share import WHOLE, Share


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
    """The indices of a batch of an epoch, and the seed of whatever is drawn while it is loaded."""

    seed: int
    indices: Any
    epoch: int = 0


@dataclass(eq=False)
class EpochBatches:
    """A sampler of the batches of one epoch from a cursor on. The engine sets `epoch` and `start`.

    order       the indices of an epoch
    size        how many those are
    batch_size  None takes the indices one by one, not in lists
    as_lists    whether each of these is a list of indices, that of a batch
    with_seeds  yield SeededBatch instead of plain indices, for loaders whose workers must not
                depend on which batches they loaded before
    limit       no more batches an epoch than this
    share       which indices of each list are given; of a list that has none for it, the first
    """

    order: Callable[[int], Indices]
    size: int
    batch_size: int | None
    drop_last: bool
    seed: int
    task: str = ""
    with_seeds: bool = False
    limit: int | None = None
    as_lists: bool = False
    share: Share = WHOLE
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
            indices = self.at(order, position)
            if self.with_seeds:
                yield SeededBatch(self._seed(epoch, position), indices, epoch)
            else:
                yield indices

    @property
    def is_split(self) -> bool:
        """Whether only some of the indices of a batch are given."""
        return self.share.size > 1 and (self.batch_size is not None or self.as_lists)

    def rows(self, epoch: int, position: int) -> int:
        """How many indices the list of a batch has, those of all shares."""
        if self.batch_size is None:
            listed: Any = self.order(epoch)[position]
            return len(listed)
        return min(self.batch_size, self.size - position * self.batch_size)

    def _seed(self, epoch: int, position: int) -> int:
        """The seed of a batch, and of a share of it, for the shares are of unlike rows."""
        rank = (self.share.rank,) if self.is_split else ()
        return derive_seed(self.seed, self.task, epoch, position, *rank)

    def at(self, order: Indices, position: int) -> Any:
        """The indices of one batch as a list, or one index."""
        if self.batch_size is None:
            one: Any = order[position].item() if isinstance(order, Tensor) else order[position]
            return self._own(list(one), 0, len(one)) if self.is_split else one
        first = position * self.batch_size
        taken = self._own(order, first, min(first + self.batch_size, self.size))
        return taken.tolist() if isinstance(taken, (Tensor, array)) else list(taken)

    def _own(self, order: Any, first: int, end: int) -> Any:
        """The share's indices of those from `first` to `end`."""
        if self.share.size == 1:
            return order[first:end]
        own = self.share.rows(end - first) or range(1)
        return order[first + own.start : first + own.stop]
