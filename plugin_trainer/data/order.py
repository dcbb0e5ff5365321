"""The order of samples: a pure function of seed, task, epoch and position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed from several parts; different parts give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_order(size: int, *, seed: int, task: str, epoch: int, shuffle: bool) -> list[int]:
    """The indices of `size` samples in the order in which this epoch takes them."""
    if not shuffle:
        return list(range(size))
    generator = torch.Generator().manual_seed(derive_seed(seed, task, epoch))
    return torch.randperm(size, generator=generator).tolist()


@dataclass(frozen=True)
class SeededBatch:
    """The indices of one batch, and the seed of whatever is drawn while it is loaded."""

    seed: int
    indices: list[int]


@dataclass
class EpochBatches:
    """A batch sampler over one epoch from a cursor on. The engine sets `epoch` and `start`.

    with_seeds  yield SeededBatch instead of a plain list, for loaders whose workers must not depend
                on which batches they loaded before
    """

    size: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    task: str = ""
    with_seeds: bool = False
    epoch: int = 0
    start: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in a whole epoch."""
        if self.drop_last:
            return self.size // self.batch_size
        return -(-self.size // self.batch_size)

    def __len__(self) -> int:
        return self.per_epoch - self.start

    def __iter__(self) -> Iterator[list[int] | SeededBatch]:
        order = epoch_order(
            self.size, seed=self.seed, task=self.task, epoch=self.epoch, shuffle=self.shuffle
        )
        for position in range(self.start, self.per_epoch):
            indices = order[position * self.batch_size : (position + 1) * self.batch_size]
            if self.with_seeds:
                yield SeededBatch(derive_seed(self.seed, self.task, self.epoch, position), indices)
            else:
                yield indices
