"""The training data as one endless stream of windows, each the micro-batches of one optimizer step.

Any loader becomes one of two sources. A map-style DataLoader with a plain random or sequential
sampler is taken over: its order becomes a pure function, and resuming in it is exact and loads
nothing. Anything else is iterated as it is: resuming in it skips batches, and is not exact.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from plugin_trainer.data.order import EpochBatches, SeededBatch, derive_seed
from plugin_trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class Window:
    """The micro-batches of one optimizer step, and where they stand in their epoch.

    epoch      counted from 0
    batch      how many batches of the epoch are consumed once this window is done
    first      whether it begins its epoch
    last       whether it ends its epoch
    """

    micro_batches: list[Any]
    epoch: int
    batch: int
    first: bool
    last: bool


class TrainStream:
    """Windows over epochs without end, from any cursor.

    batches_per_epoch  batches in an epoch
    steps_per_epoch    optimizer steps in an epoch
    inexact_because    why resuming in this data is not exact; empty if it is
    """

    def __init__(self, source: Source, *, accumulate: int) -> None:
        self._source = source
        self._accumulate = accumulate
        self.batches_per_epoch = source.batches_per_epoch
        self.steps_per_epoch = -(-source.batches_per_epoch // accumulate)
        self.inexact_because = source.inexact_because

    def windows(self, *, epoch: int, batch: int) -> Iterator[Window]:
        """Every window from the cursor on: `batch` batches of `epoch` are already consumed."""
        per_epoch = self._source.batches_per_epoch
        if batch >= per_epoch:
            epoch, batch = epoch + 1, 0
        while True:
            batches = self._source.batches(epoch=epoch, start=batch)
            while batch < per_epoch:
                first = batch == 0
                taken = self._take(batches, min(self._accumulate, per_epoch - batch))
                batch += len(taken)
                yield Window(taken, epoch, batch, first, batch >= per_epoch)
            epoch, batch = epoch + 1, 0

    def _take(self, batches: Iterator[Any], count: int) -> list[Any]:
        taken = []
        for _ in range(count):
            try:
                taken.append(next(batches))
            except StopIteration:
                raise DataError(
                    "the training data ended before the length it gave",
                    hint="its __len__ promises more batches than it yields",
                ) from None
        return taken


class TakenOver:
    """A map-style DataLoader whose sampler is replaced by ours; everything else of it is kept."""

    inexact_because = ""

    def __init__(self, loader: DataLoader, *, seed: int, task: str) -> None:
        in_workers = loader.num_workers > 0
        self._batches = EpochBatches(
            size=len(loader.dataset),
            batch_size=loader.batch_size or 1,
            shuffle=isinstance(loader.sampler, RandomSampler),
            drop_last=loader.drop_last,
            seed=seed,
            task=task,
            with_seeds=in_workers,
        )
        self.batches_per_epoch = self._batches.per_epoch
        # A loader draws a base seed each time it is iterated: from a generator of its own, so that
        # the global stream, which dropout uses, does not move (it would once more after a resume).
        generator = torch.Generator().manual_seed(derive_seed(seed, task, "workers"))
        self._loader = DataLoader(
            SeededDataset(loader.dataset) if in_workers else loader.dataset,
            batch_sampler=self._batches,
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
        return iter(self._loader)


class WorkerStart:
    """Prepares a worker process: signals are the main process's to answer."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        """Run in the worker, before it loads anything."""
        # Ctrl-C goes to the whole process group: a worker that died of it would make the main
        # process fail before it could save. SIGTERM is how the main process ends a worker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._then is not None:
            self._then(worker)


class AsItIs:
    """Any other iterable with a length, iterated once an epoch."""

    def __init__(self, loader: Any, *, because: str) -> None:
        self._loader = loader
        self.batches_per_epoch = len(loader)
        self.inexact_because = because

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a fresh iteration, the first `start` of them loaded and dropped."""
        del epoch
        iterator = iter(self._loader)
        for _ in range(start):
            next(iterator, None)
        return iterator


Source = TakenOver | AsItIs


class SeededDataset(Dataset):
    """A data set whose batches are loaded under a seed of their own, wherever they are loaded.

    Used in workers only: what a worker draws then depends on the batch alone, not on what the
    worker loaded before, so that a resumed run's fresh workers draw the same.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, batch: SeededBatch) -> list[Any]:
        """The samples of one batch."""
        random.seed(batch.seed)
        np.random.seed(batch.seed % 2**32)
        torch.manual_seed(batch.seed)
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(batch.indices)
        return [self._dataset[index] for index in batch.indices]


def training_stream(
    loader: Any, *, seed: int, accumulate: int = 1, batch_size: int = 32, task: str = ""
) -> TrainStream:
    """The stream over whatever a data module's `train()` gave.

    A map-style Dataset is loaded in shuffled batches of `batch_size`. Raises DataError for data
    that is empty or has no length.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        loader = DataLoader(loader, batch_size=batch_size, shuffle=len(loader) > 0)
    if isinstance(loader, Mapping):
        raise DataError(
            f"train() gave {len(loader)} loaders by name: {', '.join(map(str, loader))}",
            hint="this version trains on one; return one of them",
        )
    source: Source
    because = _why_not_taken_over(loader)
    try:
        source = (
            TakenOver(loader, seed=seed, task=task)
            if not because
            else AsItIs(loader, because=because)
        )
    except TypeError as error:
        raise DataError(
            f"the training data has no length: {error}", hint="give its loader a __len__"
        ) from None
    if source.batches_per_epoch == 0:
        raise DataError(
            "the training data holds no batch",
            hint="it is empty, or smaller than one batch and drop_last is on",
        )
    return TrainStream(source, accumulate=accumulate)


def evaluation_batches(loader: Any, *, batch_size: int) -> Any:
    """What an evaluation iterates: a data set in order, in batches; anything else as it is."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        return DataLoader(loader, batch_size=batch_size)
    return loader


def _why_not_taken_over(loader: Any) -> str:
    if type(loader) is not DataLoader:
        return f"the training data is a {type(loader).__name__}, not a DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "the training data set is iterable, so its order is its own"
    if loader.batch_size is None:
        return "the training loader has a batch sampler of its own, or none"
    sampler = loader.sampler
    plain_random = (
        type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    )
    if plain_random or type(sampler) is SequentialSampler:
        return ""
    return f"the training loader has a sampler of its own ({type(sampler).__name__})"
