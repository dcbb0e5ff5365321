"""Ctrl-C reaches the workers of a loader too, and must not end them before a run is saved."""

from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from plugin_trainer.data.stream import training_stream

pytestmark = pytest.mark.process


class Numbers(IterableDataset):
    """Forty numbers, divided among the workers."""

    def __iter__(self):
        worker = get_worker_info()
        return iter(range(worker.id, 40, worker.num_workers))


class Loader(DataLoader):
    """A loader of a class of its own, which can save its state."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


started = multiprocessing.Value("i", 0)


def count_start(worker: int) -> None:
    with started.get_lock():
        started.value += 1


@pytest.mark.parametrize("loader", [DataLoader, Loader], ids=["as-it-is", "stateful"])
@pytest.mark.parametrize("data", [Numbers(), range(40)], ids=["iterable", "map-style"])
def test_workers_outlive_an_interrupt_and_start_as_the_user_wants(loader, data):
    started.value = 0
    made = loader(data, batch_size=2, num_workers=2, worker_init_fn=count_start)
    stream = training_stream(made, seed=0)
    windows = stream.windows(epoch=0, batch=0)
    seen = [next(windows).micro_batches[0] for _ in range(2)]  # one of each worker
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    seen += [window.micro_batches[0] for window in islice(windows, 18)]
    assert sorted(torch.cat(seen).tolist()) == [*range(40)]
    assert started.value == 2
