"""Samples or batches: which objects give single samples, of which batches are still to be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from plugin_trainer.data.batches import find_labels
from plugin_trainer.data.rows import Part
from plugin_trainer.data.share import StandIn
from plugin_trainer.errors import DataError


def is_map_style(data: Any) -> bool:
    """Whether an object gives single samples by index, so that batches are still to be made of it.

    A Dataset of torch, whatever fetches several samples at once as torch asks for it (Hugging Face
    data sets do), and any class with a length and an index but no iteration of its own: one that
    has an `__iter__` says itself what comes next, and that is taken for its batches.
    """
    if isinstance(data, (DataLoader, IterableDataset, Mapping)):
        return False
    if isinstance(data, Dataset):
        return True
    kind = type(data)
    if not hasattr(kind, "__getitem__"):
        return False
    return hasattr(kind, "__getitems__") or (
        hasattr(kind, "__len__") and not hasattr(kind, "__iter__")
    )


def has_samples(data: Any, *, role: str) -> bool:
    """Whether its length is above 0. Raises DataError, naming its role, if it has no length."""
    try:
        return len(data) > 0
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"the {role} data has no length: {error}", hint="give its data set a __len__"
        ) from None


def may_give_samples(data: Any) -> bool:
    """Whether an iterable of batches is easily mistaken for one of samples: a list, or an iterable
    data set without a loader around it.
    """
    return isinstance(data, (list, tuple, IterableDataset))


def refuse_sample(batch: Any, *, role: str) -> None:
    """Raise DataError, naming the role of the data, if a batch of it is a single sample: its label
    is one number.
    """
    while isinstance(batch, (Part, StandIn)):
        batch = batch.batch
    found = find_labels(batch)
    if found is None:
        return
    labels = found[1]
    if isinstance(labels, (int, float)) or (isinstance(labels, Tensor) and labels.dim() == 0):
        raise DataError(
            f"the {role} data gives single samples where batches are needed: its first label is "
            "one number",
            hint="put a loader around it: DataLoader(data, batch_size=32)",
        )
