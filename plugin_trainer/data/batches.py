"""What the engine must know of a batch of any shape: its labels, its rows, its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.share import StandIn
from plugin_trainer.errors import DataError

IGNORED_LABEL = -100
"""The label that torch's losses leave out by default."""

_FEW = 256


def move_batch(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on the device, in dicts, lists, tuples and named tuples.

    Copies from pinned memory do not wait. Anything with a `.to` of its own is asked to move itself.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        moved = {name: move_batch(value, device) for name, value in batch.items()}
        return moved if type(batch) is dict else rebuilt(batch, moved)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_batch(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_batch(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def rebuilt(batch: Mapping[str, Any], entries: dict[str, Any]) -> Any:
    """A mapping like the batch with other entries; a dict where its class cannot be made of one."""
    try:
        return type(batch)(entries)  # type: ignore[call-arg]
    except TypeError:
        return entries


def find_labels(batch: Any, *, key: str = "") -> tuple[str, Any] | None:
    """The labels of a batch and the key they stand under, or None if there are none.

    In a mapping: the configured key, else `labels`, else `label`, else all `labels_<head>` as a
    dict by head. In a tuple or list of two or more: the last entry, under the key "".

    Raises DataError, naming the keys seen, if a configured key is not there.
    """
    if isinstance(batch, Mapping):
        if key:
            if key not in batch:
                raise DataError(
                    f"the batch has no labels under '{key}'; it has: {', '.join(map(str, batch))}",
                    hint="set `label` to one of these",
                )
            return key, batch[key]
        for name in ("labels", "label"):
            if name in batch:
                return name, batch[name]
        heads = {
            name.removeprefix("labels_"): value
            for name, value in batch.items()
            if isinstance(name, str) and name.startswith("labels_")
        }
        return ("labels_", heads) if heads else None
    if isinstance(batch, (list, tuple)) and len(batch) >= 2:
        return "", batch[-1]
    return None


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, depth first."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors_in(value)


def count_rows(batch: Any) -> int:
    """How many samples a batch holds: the first axis of its first tensor that has one, else 1.

    A stand-in holds none.
    """
    if isinstance(batch, StandIn):
        return 0
    for tensor in tensors_in(batch):
        if tensor.dim() > 0:
            return tensor.shape[0]
    return 1


def count_valid(labels: Any, *, ignored: int = IGNORED_LABEL) -> int | Tensor:
    """How many items a mean loss over these labels is a mean over; on a device it is not read.

    Class labels count where they are not the ignored one; other labels count by row.
    """
    if isinstance(labels, Tensor):
        if labels.dim() == 0:
            return 1
        if labels.is_floating_point() or labels.dtype == torch.bool:
            return labels.shape[0]
        if labels.device.type == "cpu" and labels.dim() == 1 and len(labels) <= _FEW:
            # Two operations of torch cost 15 us, which a step of a small model would notice.
            return len(labels) - labels.tolist().count(ignored)
        return (labels != ignored).sum()
    return count_rows(labels)
