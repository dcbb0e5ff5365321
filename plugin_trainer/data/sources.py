"""From whatever a data module calls its training data to a source of batches, epoch by epoch.

Any loader becomes one of three:

TakenOver  a map-style DataLoader with samplers of torch: its order becomes a pure function, and
           resuming in it is exact and loads nothing
Stateful   a loader that can save where it stands: resuming in it is exact too
AsItIs     anything else: resuming in it skips batches, and is not exact
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from plugin_trainer.data.iterated import AsItIs, Stateful, is_stateful
from plugin_trainer.data.samplers import check_shared, sampling_of, why_order_unknown
from plugin_trainer.data.share import WHOLE, Share
from plugin_trainer.data.taken_over import TakenOver
from plugin_trainer.data.unbatched import has_samples, is_map_style
from plugin_trainer.errors import DataError

Source = TakenOver | Stateful | AsItIs


def source_of(
    data: Any,
    *,
    seed: int,
    batch_size: int,
    task: str = "",
    limit: int | None = None,
    share: Share = WHOLE,
) -> Source:
    """The source over a loader, a data set or an iterable of batches.

    batch_size  of the shuffled batches in which a map-style Dataset is loaded
    task        which task of a mixture it is, so that tasks draw unlike orders
    limit       an epoch is its first so many batches
    share       which rows of each batch are this process's; a source gives parts of batches where
                that is not the whole

    Raises DataError for data that is empty or no data at all, and for batches of a size that cannot
    be shared out evenly.
    """
    source = _source(data, seed=seed, batch_size=batch_size, task=task, limit=limit, share=share)
    if source.batches_per_epoch == 0:
        raise DataError(
            f"the training data{of_task(task)} holds no batch",
            hint="it is empty, or smaller than one batch and drop_last is on",
        )
    return source


def of_task(task: str) -> str:
    """Which data is meant, where there are several."""
    return f" of task '{task}'" if task else ""


ROWS = 32
"""Of a batch, where nobody says."""


def check_batch_size(data: Any, batch_size: int | None) -> None:
    """Raise DataError for a loader whose batches are of another size than the run's, if it has one.

    The order of a loader's batches is its own; only a data set is put into batches by the run.
    """
    if batch_size is None:
        return
    for task, loader in data.items() if isinstance(data, Mapping) else [("", data)]:
        own = sampling_of(loader).batch_size if isinstance(loader, DataLoader) else None
        if own not in (None, batch_size):
            raise DataError(
                f"batch_size is {batch_size}, and the training loader{of_task(task)} has its own: "
                f"{own}",
                hint="leave out batch_size, or pass the data set in place of the loader",
            )


def _check_batch_size(data: Any, batch_size: int, share: Share, task: str) -> None:
    """Raise DataError for batches that the processes cannot share evenly, the last one apart."""
    its_own = not is_map_style(data)
    size = getattr(data, "batch_size", None) if its_own else batch_size
    if isinstance(data, DataLoader):
        size = sampling_of(data).batch_size or size  # its sampler may give lists of that size
    if not isinstance(size, int) or size % share.size == 0:
        return
    below = size - size % share.size
    nearest = " or ".join(str(near) for near in (below, below + share.size) if near)
    raise DataError(
        f"the batch size of the training data{of_task(task)} is {size}, and {share.size} processes "
        "cannot share out such a batch evenly",
        hint=(
            f"give its loader a batch size of {nearest}" if its_own else f"batch_size = {nearest}"
        )
        + ": it is that of all processes together",
    )


def _source(
    data: Any, *, seed: int, batch_size: int, task: str, limit: int | None, share: Share
) -> Source:
    role = f"training ('{task}')" if task else "training"
    check_shared(data, share, role=role)
    _check_batch_size(data, batch_size, share, task)
    if is_map_style(data):
        shuffle = has_samples(data, role=role)
        data = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    because = why_order_unknown(data)
    if not because:
        has_samples(data, role=role)
        return TakenOver(data, seed=seed, task=task, limit=limit, share=share)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise DataError(
            f"the training data{of_task(task)} is a {type(data).__name__}, which cannot be "
            "iterated",
            hint="train() returns a DataLoader, a Dataset or an iterable of batches",
        )
    if is_stateful(data):
        return Stateful(data, seed=seed, task=task, limit=limit, share=share)
    return AsItIs(data, because=because, seed=seed, task=task, limit=limit, share=share)
