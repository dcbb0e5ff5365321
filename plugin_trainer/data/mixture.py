"""Several tasks as one source: their batches in a planned order, each labelled with its task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.mixing import Mixing, warnings_of
from plugin_trainer.data.rows import Part
from plugin_trainer.data.share import WHOLE, Share, StandIn
from plugin_trainer.data.sources import Source, source_of
from plugin_trainer.data.unbatched import may_give_samples, refuse_sample
from plugin_trainer.errors import DataError

TASK = "task"
"""The entry of a batch that names its task; a model's forward takes it under this name."""

_AT_ONCE = 1 << 16
_END = object()


def with_task(batch: Any, task: str) -> Any:
    """The batch with the name of its task in it; of a part or a stand-in, the batch within.

    Raises DataError for a batch that is no mapping, or that has another entry of that name.
    """
    if isinstance(batch, Part):
        return replace(batch, batch=with_task(batch.batch, task))
    if isinstance(batch, StandIn):
        return StandIn(with_task(batch.batch, task))
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


def check_task(task: Any) -> None:
    """Raise DataError for what cannot be the name of a task."""
    if not isinstance(task, str) or not task or "/" in task:
        raise DataError(
            f"a task cannot be called {task!r}",
            hint="its name is a text without '/': metrics are called val/<task>/...",
        )


class Mixture:
    """The training data of several tasks, mixed.

    tasks              their names, in the order of a round
    quotas             the batches that each task gives to a mixed epoch; None where a task's data
                       has no length, so that only the end of its data tells
    batches_per_epoch  batches of a mixed epoch, None if that is not known before its end
    warnings           what in the mixture is likely not meant

    A task whose quota is not the length of its own epoch goes on in the next mixed epoch where it
    stopped, and begins anew, in another order, when it is through. A limited epoch is the beginning
    of a whole one: the next one begins where the next whole one would.
    """

    once = False
    ends_itself = False

    def __init__(
        self,
        loaders: Mapping[str, Any],
        *,
        mixing: Mixing,
        seed: int,
        batch_size: int,
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        if not loaders:
            raise DataError("train() gave no task", hint="give it at least one loader by name")
        self.mixing = mixing
        self._seed = seed
        self._sources: dict[str, Source] = {}
        self._to_be_checked = {task for task, data in loaders.items() if may_give_samples(data)}
        for task, data in loaders.items():
            check_task(task)
            self._sources[task] = source_of(
                data, seed=seed, batch_size=batch_size, task=task, share=share
            )
        self.tasks = tuple(self._sources)
        self._drawn = {task: _Drawn(source, task) for task, source in self._sources.items()}
        self._last_order: tuple[int, Tensor] | None = None
        self._plan = plan = self._planned()
        self.quotas, self.batches_per_epoch, self.warnings = plan, None, []
        self.at_most, self.is_fixed = limit, plan is not None
        if plan is not None:
            total = self.batches_per_epoch = sum(plan.values())
            if limit is not None and limit < total:
                self.batches_per_epoch = limit
                limited = mixing.limited(list(plan.values()), limit)
                self.quotas = dict(zip(plan, limited, strict=True))
            # A few batches of a drawn order tell less of the shares than all of them.
            in_order = mixing.strategy == "round_robin"
            self.warnings = warnings_of((in_order and self.quotas) or plan, mixing)
        self.inexact_because = "; ".join(filter(None, map(self._why_inexact, self._sources)))

    def batches(self, *, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a mixed epoch from position `start` on."""
        if self._plan is None:
            return islice(self._until_used_up(epoch), start, None)
        return self._as_planned(epoch, start)

    def cursors(self, *, epoch: int, batch: int) -> dict[str, int]:
        """At which of its batches each task stands, counted over all of its epochs, at a place in a
        mixed one: those that it has given, and those that limited epochs have left out.

        Empty where the plan of an epoch is not known.
        """
        if self._plan is None:
            return {}
        given = torch.bincount(self._order(epoch)[:batch], minlength=len(self._plan)).tolist()
        return {
            task: epoch * quota + now
            for (task, quota), now in zip(self._plan.items(), given, strict=True)
        }

    def close(self) -> None:
        """End the workers of every task's loader."""
        for task, source in self._sources.items():
            source.close()
            self._drawn[task].forget()

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
        """The task of every batch of a mixed epoch, as positions among the tasks: int16.

        That of one epoch is kept: ten million batches take a second to plan, and each checkpoint
        asks for the cursors.
        """
        assert self._plan is not None
        if self._last_order is None or self._last_order[0] != epoch:
            self._last_order = None
            order = self.mixing.order(list(self._plan.values()), seed=self._seed, epoch=epoch)
            self._last_order = (epoch, order)
        return self._last_order[1]

    def _as_planned(self, epoch: int, start: int) -> Iterator[Any]:
        for task, cursor in self.cursors(epoch=epoch, batch=start).items():
            self._drawn[task].go_to(cursor)
        # In pieces, for a list takes four times the memory of the order.
        for piece in self._order(epoch)[start : self.batches_per_epoch].split(_AT_ONCE):
            for position in piece.tolist():
                task = self.tasks[position]
                yield self._labelled(self._drawn[task].next(), task)

    def _until_used_up(self, epoch: int) -> Iterator[Any]:
        """A round robin of tasks of which some do not know their length."""
        running = {
            task: source.batches(epoch=epoch, start=0) for task, source in self._sources.items()
        }
        begun = set()
        while running:
            for task in list(running):
                batch = next(running[task], _END)
                if batch is not _END:
                    begun.add(task)
                    yield self._labelled(batch, task)
                    del batch  # not needed while the next one is loaded
                    continue
                if task not in begun:
                    raise DataError(
                        f"the training data of task '{task}' yielded no batch in epoch {epoch}",
                        hint="it is empty, or it can be iterated only once: give a DataLoader, a "
                        "Dataset or an object whose __iter__ begins anew",
                    )
                if self.mixing.until == "first":
                    return
                del running[task]

    def _labelled(self, batch: Any, task: str) -> Any:
        if task in self._to_be_checked:
            refuse_sample(batch, role=f"training ('{task}')")
            self._to_be_checked.discard(task)
        return with_task(batch, task)


class _Drawn:
    """The batches of one task without end, and how many of them are drawn.

    Between two mixed epochs it keeps its place, so that a task that goes on loads nothing again;
    at the end of the task's own epoch it lets go of the loader's workers.
    """

    def __init__(self, source: Source, task: str) -> None:
        self._source, self._task = source, task
        self._length = source.batches_per_epoch  # the mixture is planned with it
        self._count = 0
        self._batches: Iterator[Any] | None = None

    def go_to(self, count: int) -> None:
        """Stand where so many batches are drawn. Loads nothing before the next one is asked for."""
        if count != self._count:
            self.forget()
            self._count = count

    def next(self) -> Any:
        """The next batch. Raises DataError for data that ends before the length that it gave."""
        length = self._length
        assert length is not None
        epoch, start = divmod(self._count, length)
        if self._batches is None:
            self._batches = self._source.batches(epoch=epoch, start=start)
        batch = next(self._batches, _END)
        if batch is _END:
            raise DataError(
                f"the training data of task '{self._task}' ended after {start} batches, before the "
                f"length of {length} that it gave",
                hint="it is used up, or its __len__ promises more batches than it yields",
            )
        self._count += 1
        if start + 1 == length:
            self.forget()
        return batch

    def forget(self) -> None:
        """Let go of the loader's iterator."""
        self._batches = None
