"""A process's own rows of a batch that was loaded whole, and the part that it trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from plugin_trainer.data.batches import rebuilt
from plugin_trainer.data.share import Share, StandIn
from plugin_trainer.errors import DataError

# B rows of a whole batch


@dataclass(frozen=True, slots=True)
class Part:
    """A process's part of a batch, or its stand-in for one, in place of which sources give it where
    several processes share each batch.

    rows    how many the whole batch has
    digest  of the whole batch, where only that tells that all processes have loaded the same; of
            most there is none
    """

    batch: Any
    rows: int
    digest: str = ""


def take_rows(batch: Any, share: Share) -> Part:
    """The share's rows of a batch of B rows. Where there are fewer rows than processes, the first
    one stands in for those that have none.

    Tensors and arrays [B, ...] are cut along their first axis. Mappings and named tuples are gone
    into, and so is a tuple or list that is the batch itself. One inside of these holds the rows if
    it is as long as the batch, and else is gone into too. What has no axis is kept.

    Raises DataError, naming the key, for a batch without rows and for what has no known ones.
    """
    count = _count(batch)
    if count == 0:
        raise DataError(
            "a batch of the training data has no row", hint="leave empty batches out of the data"
        )
    own = share.rows(count)
    taken = _cut(batch, own or range(1), count, key="")
    return Part(taken if own else StandIn(taken), count)


def _count(batch: Any) -> int:
    """B: by the first tensor or array, and where there is none, by the first list."""
    if not _is_list_of_rows(batch):
        for column in _columns(batch):
            return len(column)
    for rows in _lists(batch):
        return len(rows)
    raise DataError(
        f"a batch of the training data is a {type(batch).__name__}, in which no rows are found; "
        "the processes of a run share the rows of each batch",
        hint="make batches of tensors, arrays or lists of rows, in a dict or a tuple",
    )


def _columns(batch: Any) -> Iterator[Tensor | np.ndarray]:
    """The tensors and arrays with an axis that are surely not one row each."""
    if _has_axis(batch):
        yield batch
        return
    for value in _entries(batch):
        if not _is_sequence(value):
            yield from _columns(value)


def _lists(batch: Any) -> Iterator[list | tuple]:
    if _is_list_of_rows(batch):
        yield batch
        return
    for value in _entries(batch):
        if _is_sequence(value):
            yield value
        else:
            yield from _lists(value)


def _entries(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        yield from batch.values()
    elif isinstance(batch, (list, tuple)):
        yield from batch


def _is_list_of_rows(batch: Any) -> bool:
    """Whether a batch is a list of whole samples, not one of columns."""
    return isinstance(batch, list) and not any(
        _has_axis(entry) or _is_sequence(entry) for entry in batch
    )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def _has_axis(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _cut(value: Any, own: range, count: int, *, key: str) -> Any:
    """The own rows of something with `count` of them; the batch itself has no key."""
    if _has_axis(value):
        if len(value) != count:
            raise _unlike(key, f"has {len(value)} rows", count)
        return value[own.start : own.stop]
    if isinstance(value, Mapping):
        cut = {
            name: _cut(entry, own, count, key=_joined(key, name)) for name, entry in value.items()
        }
        return cut if type(value) is dict else rebuilt(value, cut)
    if _is_sequence(value):
        if _holds_rows(value, count, key=key):
            return value[own.start : own.stop]
        return type(value)(_cut_each(value, own, count, key=key))
    if isinstance(value, tuple):
        return type(value)(*_cut_each(value, own, count, key=key))
    if hasattr(value, "to") and not isinstance(value, Tensor):
        raise _unlike(key, f"is a {type(value).__name__}, whose rows are not known", count)
    return value


def _cut_each(values: list | tuple, own: range, count: int, *, key: str) -> Iterator[Any]:
    for position, entry in enumerate(values):
        yield _cut(entry, own, count, key=_joined(key, position))


def _holds_rows(values: list | tuple, count: int, *, key: str) -> bool:
    """Whether a list or tuple is one of rows. Raises DataError where that cannot be told."""
    if not key:
        return _is_list_of_rows(values)
    if len(values) != count:
        return False
    if count > 1 and all(_has_axis(entry) and len(entry) == count for entry in values):
        raise DataError(
            f"'{key}' of a batch holds {count} tensors of {count} rows each, in a batch of {count} "
            "rows: they may be its rows or its columns",
            hint="stack them into one tensor, give them a key each, or leave such a small batch "
            "out (drop_last)",
        )
    return True


def _joined(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _unlike(key: str, what: str, count: int) -> DataError:
    named = f"'{key}' of a batch" if key else "a batch of the training data"
    return DataError(
        f"{named} {what}, in a batch of {count} rows; the processes of a run share the rows of each"
        " batch",
        hint="give it one row for each row of the batch, or leave it out of the batch",
    )
