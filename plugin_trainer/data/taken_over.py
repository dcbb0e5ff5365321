"""A map-style DataLoader whose order is ours: entered at any batch, exactly, loading nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from plugin_trainer.data.iterated import Seeded, set_epoch
from plugin_trainer.data.order import EpochBatches, Indices, derive_seed
from plugin_trainer.data.rows import Part
from plugin_trainer.data.samplers import sampler_order, sampling_of
from plugin_trainer.data.seeded import SeededDataset
from plugin_trainer.data.share import WHOLE, Share, StandIn
from plugin_trainer.data.workers import Running, WorkerStart


class TakenOver:
    """A map-style DataLoader whose sampler is replaced by ours; everything else of it is kept.

    Each of several processes loads only its own samples of a batch. Where a data set gives ready
    batches, each loads all of it and keeps its rows.
    """

    inexact_because = ""
    once = False
    is_fixed = True
    ends_itself = False

    def __init__(
        self,
        loader: DataLoader,
        *,
        seed: int,
        task: str,
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        in_workers = loader.num_workers > 0
        sampling = sampling_of(loader)

        def order(epoch: int) -> Indices:
            return sampler_order(sampling.sampler, seed=seed, task=task, epoch=epoch)

        self._batches = EpochBatches(
            order=order,
            size=len(sampling.sampler),
            batch_size=sampling.batch_size,
            drop_last=sampling.drop_last,
            seed=seed,
            task=task,
            with_seeds=in_workers,
            limit=limit,
            as_lists=sampling.as_list and sampling.batch_size is None,
            share=share,
        )
        self._seed = (seed, task)
        self._given = loader
        self._running = Running()
        self.batches_per_epoch = self.at_most = self._batches.per_epoch
        sampler: dict[str, Any] = (
            {"batch_sampler": self._batches}
            if sampling.as_list
            else {"sampler": self._batches, "batch_size": None}
        )
        # A loader draws a base seed each time it is iterated: from a generator of its own, so that
        # the global stream, which dropout uses, does not move (it would once more after a resume).
        generator = torch.Generator().manual_seed(derive_seed(seed, task, "workers"))
        self._loader = DataLoader(
            SeededDataset(loader.dataset) if in_workers else loader.dataset,
            **sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=WorkerStart(loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from position `start` on; none before it is loaded."""
        self._batches.epoch, self._batches.start = epoch, start
        set_epoch(self._given, epoch)
        batches = self._running.follow(iter(self._loader))
        if self._batches.share.size == 1:
            return batches
        if self._batches.is_split:
            return self._parts(batches, epoch, start)
        return Seeded(batches, seed=self._seed, epoch=epoch, start=start, share=self._batches.share)

    def _parts(self, batches: Iterator[Any], epoch: int, start: int) -> Iterator[Part]:
        share = self._batches.share
        for position, batch in enumerate(batches, start):
            rows = self._batches.rows(epoch, position)
            yield Part(batch if share.rows(rows) else StandIn(batch), rows)
            del batch  # not needed while the next one is loaded

    def close(self) -> None:
        """End the loader's workers, those that would stay for another epoch too."""
        self._running.end()
        self._loader._iterator = None
