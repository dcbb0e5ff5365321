"""Several tasks as one source: their batches in a planned order, each labelled with its task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.mixing import Mixing
from plugin_trainer.data.sources import Source, source_of
from plugin_trainer.data.unbatched import may_give_samples, refuse_sample
from plugin_trainer.errors import DataError

TASK = "task"
"""The entry of a batch that names its task; a model's forward takes it under this name."""


def with_task(batch: Any, task: str) -> Any:
    """The batch with the name of its task in it.

    Raises DataError for a batch that is no mapping, or that has another entry of that name.
    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a batch of task '{task}' is a {type(batch).__name__}, and has no place for the "
            "name of its task",
            hint="batches of several tasks are mappings: collate them into a dict",
        )
    if TASK in batch:
        raise DataError(
            f"a batch of task '{task}' has an entry '{TASK}' already",
            hint=f"name that entry otherwise: '{TASK}' holds the name of the batch's task",
        )
    return {**batch, TASK: task}


class Mixture:
    """The training data of several tasks, mixed.

    quotas             the batches that each task gives to a mixed epoch; None where a task's data
                       has no length, so that only the end of its data tells
    batches_per_epoch  batches of a mixed epoch, None if that is not known before its end

    A task whose quota is not the length of its own epoch goes on in the next mixed epoch where it
    stopped, and begins anew, in another order, when it is through.
    """

    once = False

    def __init__(
        self,
        loaders: Mapping[str, Any],
        *,
        mixing: Mixing,
        seed: int,
        batch_size: int,
        limit: int | None = None,
    ) -> None:
        if not loaders:
            raise DataError("train() gave no task", hint="give it at least one loader by name")
        self.mixing = mixing
        self._seed, self._limit = seed, limit
        self._sources: dict[str, Source] = {}
        self._to_be_checked = {task for task, data in loaders.items() if may_give_samples(data)}
        for task, data in loaders.items():
            if not isinstance(task, str) or not task or "/" in task:
                raise DataError(
                    f"a task cannot be called {task!r}",
                    hint="its name is a text without '/': metrics are called val/<task>/...",
                )
            self._sources[task] = source_of(data, seed=seed, batch_size=batch_size, task=task)
        self.quotas = self._planned()
        total = None if self.quotas is None else sum(self.quotas.values())
        self.batches_per_epoch = total if limit is None or total is None else min(total, limit)
        self.inexact_because = "; ".join(filter(None, map(self._why_inexact, self._sources)))

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a mixed epoch from position `start` on."""
        if self.quotas is None:
            return islice(self._until_used_up(epoch), start, None)
        return self._as_planned(epoch, start)

    def cursors(self, *, epoch: int, batch: int) -> dict[str, int]:
        """How many batches each task has given, over all epochs, at a place in a mixed one.

        Empty where the plan of an epoch is not known.
        """
        if self.quotas is None:
            return {}
        order = self._order(epoch)[:batch].long()
        given = torch.bincount(order, minlength=len(self.quotas)).tolist()
        return {
            task: epoch * quota + now
            for (task, quota), now in zip(self.quotas.items(), given, strict=True)
        }

    def close(self) -> None:
        """End the workers of every task's loader."""
        for source in self._sources.values():
            source.close()

    def _planned(self) -> dict[str, int] | None:
        lengths = {task: source.batches_per_epoch for task, source in self._sources.items()}
        known = {task: length for task, length in lengths.items() if length is not None}
        if len(known) == len(lengths):
            return dict(zip(known, self.mixing.quotas(list(known.values())), strict=True))
        if self.mixing.strategy != "round_robin":
            unknown = ", ".join(f"'{task}'" for task in lengths if task not in known)
            raise DataError(
                f"the data of {unknown} has no length, and a {self.mixing.strategy} mixture goes "
                "by lengths",
                hint='give its loader a __len__, or mix them by strategy = "round_robin"',
            )
        return None

    def _why_inexact(self, task: str) -> str:
        source = self._sources[task]
        because = source.inexact_because
        if not because and hasattr(source, "batches_after"):
            because = "its loader has a state of its own, which a mixture skips through"
        return f"task '{task}': {because}" if because else ""

    def _order(self, epoch: int) -> Tensor:
        """The task of every batch of a mixed epoch, as positions among the tasks."""
        assert self.quotas is not None
        return self.mixing.order(list(self.quotas.values()), seed=self._seed, epoch=epoch)

    def _as_planned(self, epoch: int, start: int) -> Iterator[Any]:
        cursors = self.cursors(epoch=epoch, batch=start)
        # Entered only when its turn comes, so that a task that is through keeps no workers.
        running = {task: self._batches_of(task, drawn) for task, drawn in cursors.items()}
        tasks = list(self._sources)
        for position in self._order(epoch)[start : self.batches_per_epoch].tolist():
            task = tasks[position]
            yield self._labelled(next(running[task]), task)

    def _batches_of(self, task: str, drawn: int) -> Iterator[Any]:
        """The batches of a task without end, `drawn` of them already given."""
        source = self._sources[task]
        assert source.batches_per_epoch is not None
        epoch, start = divmod(drawn, source.batches_per_epoch)
        while True:
            given = start
            for batch in islice(
                source.batches(epoch=epoch, start=start), source.batches_per_epoch - start
            ):
                given += 1
                yield batch
            if given < source.batches_per_epoch:
                raise DataError(
                    f"the training data of task '{task}' ended after {given} batches, before the "
                    f"length of {source.batches_per_epoch} that it gave",
                    hint="it is used up, or its __len__ promises more batches than it yields",
                )
            epoch, start = epoch + 1, 0

    def _until_used_up(self, epoch: int) -> Iterator[Any]:
        """A round robin of tasks of which some do not know their length."""
        running = {
            task: source.batches(epoch=epoch, start=0) for task, source in self._sources.items()
        }
        while running:
            for task, batches in list(running.items()):
                try:
                    batch = next(batches)
                except StopIteration:
                    if self.mixing.until == "first":
                        return
                    del running[task]
                    continue
                yield self._labelled(batch, task)

    def _labelled(self, batch: Any, task: str) -> Any:
        if task in self._to_be_checked:
            refuse_sample(batch, role=f"training ('{task}')")
            self._to_be_checked.discard(task)
        return with_task(batch, task)
