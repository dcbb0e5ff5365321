"""The data that a model is evaluated on: found and checked before the first step, gone through in
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from plugin_trainer.data.dealt import deal, keeps_workers
from plugin_trainer.data.iterated import length_of
from plugin_trainer.data.mixture import check_task, with_task
from plugin_trainer.data.samplers import check_shared
from plugin_trainer.data.share import WHOLE, Share
from plugin_trainer.data.unbatched import (
    has_samples,
    is_map_style,
    may_give_samples,
    refuse_sample,
)
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.registry.blame import what_and_where

METHODS = {"val": "validation", "test": "test"}
"""By the split's name in metrics, the method of the data module that gives it."""


def evaluation_loaders(data: Any, *, splits: Iterable[str] = METHODS) -> dict[str, Any]:
    """The loaders of the splits that the data module has, of these: "val" and "test".

    Raises DataError for one that is empty, or that cannot be gone through time and again.
    """
    loaders = {}
    for split in splits:
        method = METHODS[split]
        loader = given_by(data, method) if hasattr(data, method) else None
        if loader is None:
            continue
        if isinstance(loader, Mapping):
            if not loader:
                raise DataError(
                    f"{method}() gave no task", hint="give it a loader by name, or return None"
                )
            for task, its in loader.items():
                check_task(task)
                _check(its, f"{method} ('{task}')")
        else:
            _check(loader, method)
        loaders[split] = loader
    return loaders


def given_by(data: Any, method: str) -> Any:
    """What a data module's train(), validation() or test() gives.

    Raises DataError for one that is not there, or that fails.
    """
    module = type(data).__name__
    if not callable(getattr(data, method, None)):
        raise DataError(f"the data module {module} has no {method}()", hint="see docs/plugins.md")
    try:
        return getattr(data, method)()
    except PtrainError:
        raise
    except Exception as error:
        hint = what_and_where(error)
        if isinstance(error, OSError):
            with suppress(OSError):  # of a folder that is gone
                hint.append(f"relative paths begin at the current folder: {Path.cwd()}")
        raise DataError(f"the data module {module} failed in {method}()", hint=hint) from error


def _check(loader: Any, method: str) -> None:
    returns = "validation() and test() return a DataLoader, a Dataset or an iterable of batches"
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(
            f"the {method} data is a {type(loader).__name__}, which cannot be iterated",
            hint=returns,
        )
    if hasattr(loader, "__next__"):
        raise DataError(
            f"the {method} data can be iterated only once, and every evaluation needs all of it",
            hint="give a DataLoader, a Dataset or an object whose __iter__ begins anew",
        )
    if is_map_style(loader):
        has_samples(loader, role=method)
    if length_of(loader, limit=None) == 0:
        raise DataError(f"the {method} data is empty", hint="check its file, or leave it out")


def evaluation_batches(
    loader: Any, *, batch_size: int, limit: int | None = None, share: Share = WHOLE, task: str = ""
) -> Any:
    """What an evaluation iterates: a data set in order, in batches; anything else as it is; several
    by name one after the other, each batch labelled with its task.

    limit  only so many batches, of each task; workers may load some more ahead
    share  which of several processes this is: the batches of each task are dealt out to them, and
           a StandIn is given where others have one batch more
    task   the one of which these are, for messages

    Raises DataError for data that is divided among processes already, and while it is iterated, for
    samples in place of batches.
    """
    if isinstance(loader, Mapping):
        return ByTask(
            {
                task: evaluation_batches(
                    its, batch_size=batch_size, limit=limit, share=share, task=task
                )
                for task, its in loader.items()
            }
        )
    check_shared(loader, share, role=f"evaluation ('{task}')" if task else "evaluation")
    if is_map_style(loader):
        loader = DataLoader(loader, batch_size=batch_size)
    elif may_give_samples(loader):
        loader = Batches(loader)
    if share.size > 1 or keeps_workers(loader):
        return deal(loader, share, limit=limit)
    return loader if limit is None else Limited(loader, limit)


@dataclass(frozen=True)
class Batches:
    """A loader whose first batch is looked at, each time it is iterated."""

    loader: Any

    def __iter__(self) -> Iterator[Any]:
        for position, batch in enumerate(self.loader):
            if position == 0:
                refuse_sample(batch, role="evaluation")
            yield batch


@dataclass(frozen=True)
class ByTask:
    """The batches of several tasks, one task after the other, each time it is iterated."""

    loaders: Mapping[str, Any]

    def __iter__(self) -> Iterator[Any]:
        for task, loader in self.loaders.items():
            empty = True
            for batch in loader:
                empty = False
                yield with_task(batch, task)
            if empty:
                raise DataError(
                    f"the evaluation data of task '{task}' is empty",
                    hint="check its file or loader",
                )


@dataclass(frozen=True)
class Limited:
    """The first batches of a loader, each time it is iterated."""

    loader: Any
    limit: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.limit)
