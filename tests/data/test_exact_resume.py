"""Entering a DataLoader at any batch is exact: R04 and R13 of the reliability bar."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from plugin_trainer.data.stream import training_stream
from plugin_trainer.training.seeding import capture_rng, restore_rng

pytestmark = pytest.mark.process

ROWS = range(22)

SAMPLERS = {
    "plain": lambda: RandomSampler(ROWS),
    "weighted": lambda: WeightedRandomSampler([1.0 + row for row in ROWS], 19),
    "subset": lambda: SubsetRandomSampler([*range(3, 22)]),
    "replacement": lambda: RandomSampler(ROWS, replacement=True),
    "distributed": lambda: DistributedSampler(ROWS, num_replicas=2, rank=0),
}


class Augmented(Dataset):
    """Numbers with noise from Python's, NumPy's and torch's random streams."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


def loader(sampler, *, workers: int, persistent: bool) -> DataLoader:
    return DataLoader(
        Augmented(),
        batch_size=3,
        sampler=SAMPLERS[sampler](),
        num_workers=workers,
        persistent_workers=persistent,
    )


@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), (2, False), (2, True)], ids=["0", "2", "2-persistent"]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_R04_the_batches_from_any_cursor_are_those_of_the_whole_stream(
    sampler, workers, persistent
):
    """Two epochs and a bit, entered in the first, in the second and exactly between them.

    Without workers the process's own streams draw, which a checkpoint puts back.
    """

    def stream():
        data = loader(sampler, workers=workers, persistent=persistent)
        return training_stream(data, seed=11)

    torch.manual_seed(0)
    whole = stream()
    per_epoch = whole.batches_per_epoch
    batches, cursors = [], [((0, 0), capture_rng())]
    for window in whole.windows(epoch=0, batch=0):
        batches.append(window.micro_batches[0])
        cursors.append(((window.epoch, window.batch), capture_rng()))
        if len(batches) == 2 * per_epoch + 1:
            break
    entered_at = range(len(batches)) if workers == 0 else (2, per_epoch, per_epoch + 1)
    for position in entered_at:
        (epoch, batch), rng = cursors[position]
        restore_rng(rng)
        windows = stream().windows(epoch=epoch, batch=batch)
        for expected in batches[position:]:
            assert torch.equal(next(windows).micro_batches[0], expected)
        del windows


class Huge(Dataset):
    """Ten million rows, and a count of those that were loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


def test_R13_a_million_steps_in_nothing_before_the_cursor_is_loaded():
    data = Huge()
    stream = training_stream(DataLoader(data, batch_size=8, shuffle=True), seed=0)
    window = next(stream.windows(epoch=0, batch=1_000_000))
    assert window.batch == 1_000_001
    assert data.loaded == window.micro_batches[0].tolist()
