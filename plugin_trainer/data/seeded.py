"""A data set whose batches draw by themselves, and not by the worker that loads them."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from plugin_trainer.data.order import SeededBatch
from plugin_trainer.data.seeds import seed_everything


class SeededDataset(Dataset):
    """A data set whose batches are loaded under a seed of their own, wherever they are loaded.

    Used in workers only: what a worker draws then depends on the batch alone, not on what the
    worker loaded before, so that a resumed run's fresh workers draw the same.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._epoch: int | None = None

    def __getitem__(self, batch: SeededBatch) -> Any:
        """What the data set has under the key that a loader without collation asks for."""
        self._prepare(batch)
        return self._dataset[batch.indices]

    def __getitems__(self, batch: SeededBatch) -> list[Any]:
        """The samples of one batch."""
        self._prepare(batch)
        if getattr(self._dataset, "__getitems__", None):
            return self._dataset.__getitems__(batch.indices)
        return [self._dataset[index] for index in batch.indices]

    def _prepare(self, batch: SeededBatch) -> None:
        # A worker that stays for another epoch has a copy of the data set, which nobody else tells.
        if batch.epoch != self._epoch and callable(getattr(self._dataset, "set_epoch", None)):
            self._dataset.set_epoch(batch.epoch)
        self._epoch = batch.epoch
        seed_everything(batch.seed)
