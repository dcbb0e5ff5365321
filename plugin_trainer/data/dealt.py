"""The batches of an evaluation dealt out to several processes, each whole to one of them.

They are dealt in rounds, in their order: one batch to each process. In a last round that does not
reach all, the others get a stand-in, so that all put equally many through the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, SequentialSampler

from plugin_trainer.data.order import EpochBatches, SeededBatch, derive_seed
from plugin_trainer.data.samplers import Sampling, sampler_order, sampling_of
from plugin_trainer.data.seeded import SeededDataset
from plugin_trainer.data.share import Share, StandIn
from plugin_trainer.data.unbatched import is_map_style

_IN_ORDER = (SequentialSampler, range, list, tuple)
"""The samplers that give the same each time."""

_KEPT: WeakKeyDictionary[DataLoader, DealtLoader] = WeakKeyDictionary()
"""Of the loaders that keep their workers, what deals out their batches and has workers to keep."""


def deal(batches: Any, share: Share, *, limit: int | None = None) -> Any:
    """What gives the share's batches of a loader or an iterable, each time it is iterated.

    limit  only so many batches, those of all shares together

    Of a map-style DataLoader whose order is known, no others are loaded. Anything else each process
    goes through whole; it has to give all of them the same batches in the same order.
    """
    if not _order_is_known(batches):
        if keeps_workers(batches):
            _end_workers(batches)  # what they draw would go on from the last evaluation
        return Dealt(batches, share, limit)
    if not batches.persistent_workers:
        return DealtLoader(batches, share, limit)
    kept = _KEPT.get(batches)
    if kept is None or (kept.share, kept.limit) != (share, limit):
        end_dealt_workers(batches)
        kept = _KEPT[batches] = DealtLoader(batches, share, limit)
    return kept


def may_differ(loader: Any) -> bool:
    """Whether a loader, or one of several by name, may give each process something else."""
    if isinstance(loader, Mapping):
        return any(map(may_differ, loader.values()))
    return not is_map_style(loader) and not _order_is_known(loader)


def keeps_workers(loader: Any) -> bool:
    """Whether a loader has workers that stay for the next time it is iterated."""
    return isinstance(loader, DataLoader) and loader.persistent_workers


def _end_workers(loader: DataLoader) -> None:
    shut_down = getattr(loader._iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
        loader._iterator = None


def _order_is_known(batches: Any) -> bool:
    return type(batches) is DataLoader and type(sampling_of(batches).sampler) in _IN_ORDER


def end_dealt_workers(loader: Any) -> None:
    """End the workers that are kept to load a share of this loader's batches; the next iteration
    starts others.
    """
    kept = _KEPT.pop(loader, None) if isinstance(loader, DataLoader) else None
    if kept is not None:
        kept.close()


class Dealt:
    """The share's batches of anything that can be iterated."""

    def __init__(self, batches: Any, share: Share, limit: int | None) -> None:
        self._batches, self._share, self._limit = batches, share, limit

    def __iter__(self) -> Iterator[Any]:
        rank, size = self._share.rank, self._share.size
        seen, first = 0, None
        for batch in islice(self._batches, self._limit):
            turn, seen = seen % size, seen + 1
            if turn == rank:
                first = None
                yield batch
            elif turn == 0:
                first = batch  # it stands in if the round ends before this process's turn
            del batch  # not needed while the next one is loaded
        if 0 < seen % size <= rank:
            yield StandIn(first)


class DealtLoader:
    """The share's batches of a map-style DataLoader that gives the same order each time.

    In workers each batch is loaded under a seed of its own, so that it does not matter which worker
    loads it, nor what that has loaded before.
    """

    def __init__(self, loader: DataLoader, share: Share, limit: int | None) -> None:
        self.share, self.limit = share, limit
        sampling = sampling_of(loader)
        in_workers = loader.num_workers > 0
        self._own = OwnBatches(sampling, share, limit, with_seeds=in_workers)
        sampler: dict[str, Any] = (
            {"batch_sampler": self._own}
            if sampling.as_list
            else {"sampler": self._own, "batch_size": None}
        )
        self._loader = DataLoader(
            SeededDataset(loader.dataset) if in_workers else loader.dataset,
            **sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def __iter__(self) -> Iterator[Any]:
        stand_in = self._own.stand_in()
        for number, batch in enumerate(self._loader):
            yield StandIn(batch) if number == stand_in else batch
            del batch  # not needed while the next one is loaded

    def close(self) -> None:
        """End the workers."""
        _end_workers(self._loader)


@dataclass(frozen=True, eq=False)
class OwnBatches:
    """A sampler of the share's batches, with the first one of the last round where it has none."""

    sampling: Sampling
    share: Share
    limit: int | None
    with_seeds: bool = False

    def __len__(self) -> int:
        return -(-self._batches().per_epoch // self.share.size)

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches()
        order = batches.order(0)
        for first in range(0, batches.per_epoch, self.share.size):
            own = first + self.share.rank
            own = own if own < batches.per_epoch else first
            indices = batches.at(order, own)
            # By the seed of the evaluation, under which a loader is iterated.
            seed = derive_seed(torch.initial_seed(), own)
            yield SeededBatch(seed, indices) if self.with_seeds else indices

    def stand_in(self) -> int:
        """Which of them is a stand-in; -1 if none is."""
        rounds, over = divmod(self._batches().per_epoch, self.share.size)
        return rounds if 0 < over <= self.share.rank else -1

    def _batches(self) -> EpochBatches:
        sampler = self.sampling.sampler
        return EpochBatches(
            order=lambda epoch: sampler_order(sampler, seed=0, task="", epoch=epoch),
            size=len(sampler),
            batch_size=self.sampling.batch_size,
            drop_last=self.sampling.drop_last,
            seed=0,
            limit=self.limit,
        )
