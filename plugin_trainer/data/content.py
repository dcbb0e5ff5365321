"""What the training data holds, as a few bytes: a resume can tell that it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from plugin_trainer.data.digest import bytes_of

_ROWS = 1024
_BYTES = 64 << 20
_DIGITS = 12


def content_of(data: Any) -> dict[str, str]:
    """A digest of what each task's loader or data set holds; of data of one task under "training".

    Nothing is loaded, for a data set may draw random numbers while it makes a row: only what lies
    open is read, tensors, arrays and lists with an entry for each row. Of long lists, and of arrays
    beyond 64 MiB, 1,024 entries are. Data in which nothing lies open is left out.
    """
    by_task = data if isinstance(data, Mapping) else {"training": data}
    sets = {task: getattr(loader, "dataset", loader) for task, loader in by_task.items()}
    return {task: digest for task, dataset in sets.items() if (digest := _digest(dataset))}


def _digest(dataset: Any) -> str:
    found = hashlib.sha256()
    columns = list(_columns(dataset))
    for column in columns:
        _add(column, found)
    return found.hexdigest()[:_DIGITS] if columns else ""


def _columns(dataset: Any) -> Iterator[Any]:
    """What holds the rows, or an entry of each."""
    if isinstance(dataset, TensorDataset):
        yield from dataset.tensors
    elif isinstance(dataset, Subset):
        yield from _columns(dataset.dataset)
        yield dataset.indices
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _columns(part)
    elif isinstance(fingerprint := getattr(dataset, "_fingerprint", None), str):
        yield fingerprint  # of the library datasets, which knows its own
    elif isinstance(dataset, (list, tuple, Tensor, np.ndarray)):
        yield dataset
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        for _, value in sorted(getattr(dataset, "__dict__", {}).items()):
            yield from _columns_in(value, rows=len(dataset))


def _columns_in(value: Any, *, rows: int) -> Iterator[Any]:
    """What an attribute of a data set has of its rows."""
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _columns_in(entry, rows=rows)
    elif isinstance(value, Dataset):
        yield from _columns(value)
    elif isinstance(value, (Tensor, np.ndarray)) or (
        isinstance(value, (list, tuple)) and len(value) == rows
    ):
        yield value


def _add(value: Any, found: Any) -> None:
    """Add a value to a digest: its form, and its content or a sample of it."""
    if isinstance(value, (Tensor, np.ndarray)):
        found.update(f"{value.dtype}{tuple(value.shape)};".encode())
        size = value.nbytes
        if size > _BYTES and len(value) > _ROWS:
            value = value[:: len(value) // _ROWS]
        if isinstance(value, np.ndarray):
            found.update(b"" if value.dtype.hasobject else value.tobytes())
        elif not value.is_sparse and not value.is_nested:
            found.update(bytes_of(value))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            found.update(f"{key}:".encode())
            _add(entry, found)
    elif isinstance(value, (list, tuple)):
        found.update(f"{len(value)} of;".encode())
        for entry in value[:: max(1, len(value) // _ROWS)]:
            _add(entry, found)
    elif isinstance(value, (str, bytes, int, float, complex, np.generic, type(None))):
        found.update(f"{value!r};".encode())
    else:  # what prints differently from one process to the next
        found.update(f"{type(value).__name__};".encode())
