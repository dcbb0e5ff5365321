"""Loaders that are iterated as they are: any iterable, and those that can save where they stand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from plugin_trainer.data.digest import digest_of
from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.private_streams import private_streams
from plugin_trainer.data.rows import take_rows
from plugin_trainer.data.share import WHOLE, Share
from plugin_trainer.data.workers import Running, prepare_workers

_NOTHING = object()
Batches = TypeVar("Batches", bound=Iterator[Any])


class AsItIs:
    """Any iterable of batches, iterated once an epoch.

    batches_per_epoch  what it promises now; None if it has no length
    ends_itself        whether its own end ends an epoch, and not what it promises
    at_most            batches after which an epoch ends in any case
    once               whether it is an iterator, which has a single pass in it

    Several processes load all of each batch, seeded alike, and keep their rows of it.
    """

    is_fixed = False

    def __init__(
        self,
        loader: Any,
        *,
        because: str,
        seed: int = 0,
        task: str = "",
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        prepare_workers(loader)
        self._running = Running()
        self._loader = loader
        self._seed = (seed, task)
        self._share = share
        self._told_once = _ToldOnce()
        self.once = hasattr(loader, "__next__")
        self.at_most = limit
        # The length of a DataLoader is a guess where its data set or its batch sampler is its own.
        self.ends_itself = isinstance(loader, DataLoader)
        self.inexact_because = because

    @property
    def batches_per_epoch(self) -> int | None:
        """What the loader promises now."""
        return length_of(self._loader, limit=self.at_most)

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a fresh iteration, the first `start` of them loaded and dropped."""
        set_epoch(self._loader, epoch)
        if self._share.size == 1:
            return _after(start, self._running.follow(iter(self._loader)))
        # What a loader draws must be the same in all of them, or their rows would overlap.
        with private_streams(derive_seed(*self._seed, epoch, "iterate")):
            iterator = self._running.follow(iter(self._loader))
        batches = Seeded(iterator, seed=self._seed, epoch=epoch, start=0, share=self._share)
        return self._told_once.of(_after(start, batches))

    def close(self) -> None:
        """End the workers of the last iteration, unless the loader keeps them for another."""
        if not getattr(self._loader, "persistent_workers", False):
            self._running.end()


class Stateful:
    """A loader with `state_dict` and `load_state_dict`, such as torchdata's.

    What is drawn in this process while a batch is loaded is seeded by the batch's position: the
    process's own streams must not depend on how often the loader was entered, nor on how far it
    was looked ahead into. What the loader's workers draw is the loader's own affair.

    Several processes load all of each batch and keep their rows of it.
    """

    inexact_because = ""
    once = False
    is_fixed = False

    def __init__(
        self,
        loader: Any,
        *,
        seed: int,
        task: str,
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        prepare_workers(loader)
        self._running = Running()
        self._loader = loader
        self._seed = (seed, task)
        self._share = share
        self._told_once = _ToldOnce()
        self.at_most = limit
        # What torch knows the length of; looking for the end of another costs a state at each step.
        self.ends_itself = isinstance(loader, DataLoader) and (
            isinstance(loader.dataset, IterableDataset)
            or type(loader.batch_sampler) not in (BatchSampler, type(None))
        )

    @property
    def batches_per_epoch(self) -> int | None:
        """What the loader promises now."""
        return length_of(self._loader, limit=self.at_most)

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a fresh iteration, the first `start` of them loaded and dropped."""
        return self._told_once.of(_after(start, self._iterate(epoch=epoch, start=0)))

    def state_dict(self) -> Any:
        """Where the loader stands, as a copy that does not move on with it."""
        return copy.deepcopy(self._loader.state_dict())

    def close(self) -> None:
        """End the workers of the last iteration, unless the loader keeps them for another."""
        if not getattr(self._loader, "persistent_workers", False):
            self._running.end()

    def batches_after(self, state: Mapping[str, Any], *, epoch: int, start: int) -> Seeded:
        """The rest of an epoch in which the loader's state was taken after `start` batches."""
        self._loader.load_state_dict(state)
        return self._told_once.of(self._iterate(epoch=epoch, start=start))

    def epoch_after(self, state: Mapping[str, Any], *, epoch: int, more: bool) -> Iterator[Any]:
        """The epoch after `epoch`, at whose end the loader's state was taken.

        more  whether the loader itself had more to give
        """
        self._loader.load_state_dict(state)
        told = self._told_once.told
        rest = self._told_once.of(self._iterate(epoch=epoch + 1, start=0))
        first = next(rest, _NOTHING)
        if not more and first is not _NOTHING:
            return chain([first], rest)  # it has begun anew of itself
        # That was the end, or what the epoch had left out: the next iteration begins anew.
        del rest
        self._told_once.told = told
        return self.batches(epoch=epoch + 1, start=0)

    def _iterate(self, *, epoch: int, start: int) -> Seeded:
        set_epoch(self._loader, epoch)
        self._seed_samplers(epoch)
        with private_streams(derive_seed(*self._seed, epoch, "iterate")):
            iterator = self._running.follow(iter(self._loader))
        return Seeded(iterator, seed=self._seed, epoch=epoch, start=start, share=self._share)

    def _seed_samplers(self, epoch: int) -> None:
        """Make the order that a known sampler draws one of the epoch.

        A loader that has to skip its way back into an epoch finds the same order only then.
        """
        for part in parts_of(self._loader):
            if type(part).__module__.startswith(("torch.utils.data.", "torchdata.")) and (
                getattr(part, "generator", _NOTHING) is None
                or isinstance(getattr(part, "generator", None), torch.Generator)
            ):
                part.generator = torch.Generator().manual_seed(derive_seed(*self._seed, epoch))


class Seeded:
    """An iterator whose every batch is loaded under a seed of its own; a share gets its rows."""

    def __init__(
        self,
        iterator: Iterator[Any],
        *,
        seed: tuple[int, str],
        epoch: int,
        start: int,
        share: Share = WHOLE,
    ) -> None:
        self._iterator, self._seed, self._epoch, self._position = iterator, seed, epoch, start
        self._share = share
        self._once: _ToldOnce | None = None

    def __iter__(self) -> Seeded:
        return self

    def digest_next(self, once: _ToldOnce) -> None:
        """Give a share a digest of the next batch with its rows: the iterator is one that may not
        give all processes the same.
        """
        self._once = once

    def __next__(self) -> Any:
        seed = derive_seed(*self._seed, self._epoch, self._position)
        self._position += 1
        with private_streams(seed):
            batch = next(self._iterator)
        if self._share.size == 1:
            return batch
        part = take_rows(batch, self._share)
        if self._once is not None and not self._once.told:
            self._once.told = True
            part = replace(part, digest=digest_of(batch))
        return part


class _ToldOnce:
    """Has the first batch that is trained on digested, and no more: that costs the processes a
    meeting.
    """

    def __init__(self) -> None:
        self.told = False

    def of(self, batches: Seeded) -> Seeded:
        """The batches, the next of which is digested if none was."""
        batches.digest_next(self)
        return batches


def _after(start: int, batches: Batches) -> Batches:
    for _ in islice(batches, start):
        pass
    return batches


def is_stateful(loader: Any) -> bool:
    """Whether a loader can save where it stands."""
    return callable(getattr(loader, "state_dict", None)) and callable(
        getattr(loader, "load_state_dict", None)
    )


def length_of(loader: Any, *, limit: int | None) -> int | None:
    """The batches of an epoch, or None for a loader that cannot say."""
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return None
    return length if limit is None else min(length, limit)


def parts_of(loader: Any) -> list[Any]:
    """The loader's samplers and its data set."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (
        batch_sampler,
        getattr(loader, "sampler", None),
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "dataset", None),
    )
    return list({id(part): part for part in parts if part is not None}.values())


def set_epoch(loader: Any, epoch: int) -> None:
    """Call `set_epoch` of whatever has one: shuffling by epoch depends on it."""
    for part in (loader, *parts_of(loader)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
