"""Loaders that save where they stand: what follows a checkpoint is what would have followed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    Dataset,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from plugin_trainer.data.stream import training_stream
from plugin_trainer.training.checkpointing.state_codec import decode, encode
from plugin_trainer.training.seeding import capture_rng, restore_rng

SIZE = 7


class Shuffled:
    """Seven batches an epoch in an order of a generator of its own, each with random noise.

    What it gives after a state was loaded: the rest of that epoch, which may be nothing.
    """

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.order: list[int] = []
        self.position = 0
        self.loaded: list[int] = []
        self.states = 0
        self._going_on = False

    def __iter__(self):
        if not self._going_on:
            self.order = torch.randperm(SIZE, generator=self.generator).tolist()
            self.position = 0
        self._going_on = False
        while self.position < SIZE:
            number = self.order[self.position]
            self.position += 1
            self.loaded.append(number)
            yield torch.tensor([number, random.random(), np.random.rand(), float(torch.rand(()))])

    def state_dict(self):
        self.states += 1
        return {
            "position": self.position,
            "order": self.order,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.position, self.order = state["position"], state["order"]
        self.generator.set_state(state["generator"])
        self._going_on = True


class Restarting(Shuffled):
    """Begins anew at once if the state that it was given was that of its end."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._going_on = self.position < SIZE


class Sized(Shuffled):
    """Says how long it is."""

    def __len__(self) -> int:
        return SIZE


class SizedRestarting(Restarting, Sized):
    """Both."""


class Modest(Shuffled):
    """Yields more than it says."""

    def __len__(self) -> int:
        return SIZE - 2


LOADERS = pytest.mark.parametrize("make", [Shuffled, Restarting, Sized, SizedRestarting, Modest])
LIMITS = pytest.mark.parametrize("limit", [None, 3, SIZE])


def assert_resumes_exactly(make, *, steps, entered_at=None, **options):
    """Each step's checkpoint, loaded into a fresh loader, gives the steps that followed it.

    The checkpoint is written as text and tensors, and holds the random streams as well.
    """
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    stream = training_stream(make(), seed=5, **options)
    assert stream.inexact_because == ""
    whole, checkpoints = [], []
    for window in stream.windows(epoch=0, batch=0):
        drawn = torch.rand(2)  # the step: dropout
        whole.append((window, drawn))
        assert isinstance(window.last, bool)
        tensors = {}
        text = json.dumps(encode(stream.state_dict(), tensors))
        cursor = {"epoch": window.epoch, "batch": window.batch}
        checkpoints.append((cursor, text, tensors, capture_rng()))
        if len(whole) == steps:
            break
    for step in entered_at or range(1, steps):
        cursor, text, tensors, rng = checkpoints[step - 1]
        fresh = training_stream(make(), seed=5, **options)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        fresh.load_state_dict(decode(json.loads(text), tensors))
        restore_rng(rng)
        windows = fresh.windows(**cursor)
        for expected, drawn in whole[step:]:
            window = next(windows)
            assert (window.epoch, window.batch) == (expected.epoch, expected.batch), step
            assert (window.first, window.last) == (expected.first, expected.last), step
            assert len(window.micro_batches) == len(expected.micro_batches)
            for one, other in zip(window.micro_batches, expected.micro_batches, strict=True):
                assert torch.equal(one, other), step
            assert torch.equal(torch.rand(2), drawn), step
        del windows
    return [window for window, _ in whole]


@LOADERS
@LIMITS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_follows_a_checkpoint_is_what_would_have_followed(make, limit, accumulate):
    windows = assert_resumes_exactly(make, steps=18, limit=limit, accumulate=accumulate)
    assert {window.epoch for window in windows} >= {0, 1, 2}


@LOADERS
def test_resuming_loads_nothing_of_what_was_consumed(make):
    stream = training_stream(make(), seed=0)
    windows = stream.windows(epoch=0, batch=0)
    for _ in range(3):
        window = next(windows)
    state = stream.state_dict()
    expected = next(windows).micro_batches[0]

    data = make()
    again = training_stream(data, seed=0)
    again.load_state_dict(state)
    assert torch.equal(next(again.windows(epoch=0, batch=3)).micro_batches[0], expected)
    assert window.batch == 3 and len(data.loaded) == 1


def test_the_state_is_asked_for_only_when_it_is_written():
    data = Sized()
    stream = training_stream(data, seed=0)
    windows = stream.windows(epoch=0, batch=0)
    assert [next(windows).last for _ in range(5)] == [False] * 5
    assert data.states == 0
    stream.state_dict()
    assert data.states == 1 and len(data.loaded) == 5


def test_without_a_length_the_state_is_that_of_before_the_look_ahead():
    data = Shuffled()
    stream = training_stream(data, seed=0)
    window = next(stream.windows(epoch=0, batch=0))
    assert window.last is False and len(data.loaded) == 2
    assert stream.state_dict()["loader"]["position"] == 1


def test_the_state_does_not_move_on_with_its_loader():
    class Live(Shuffled):
        def state_dict(self):
            self.live = {**super().state_dict(), "loaded": self.loaded}
            return self.live

    stream = training_stream(Live(), seed=0)
    windows = stream.windows(epoch=0, batch=0)
    next(windows)
    state = stream.state_dict()
    next(windows)
    assert len(state["loader"]["loaded"]) == 1


def test_without_a_state_a_cursor_skips_what_was_consumed():
    data = Sized()
    window = next(training_stream(data, seed=0).windows(epoch=0, batch=3))
    assert window.batch == 4 and len(data.loaded) == 4


def test_a_state_knows_its_place_better_than_the_cursor():
    """As after an error inside a step, when the loader is past the batch that is not counted."""
    stream = training_stream(Sized(), seed=0)
    windows = stream.windows(epoch=0, batch=0)
    for _ in range(3):
        next(windows)
    again = training_stream(Sized(), seed=0)
    again.load_state_dict(stream.state_dict())
    rest = again.windows(epoch=0, batch=2)
    assert [next(rest).batch for _ in range(5)] == [4, 5, 6, 7, 1]


def test_the_process_streams_do_not_move_while_it_loads():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    before = capture_rng()
    windows = training_stream(Shuffled(), seed=0).windows(epoch=0, batch=0)
    drawn = [next(windows).micro_batches[0][1:] for _ in range(SIZE)]
    assert capture_rng() == before
    assert len(torch.stack(drawn).unique()) == 3 * SIZE


# --------------------------------------------------------------------------------------- torchdata


class Rows(Dataset):
    """Numbers with noise, drawn in the process that loads them."""

    noisy = True

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()) if self.noisy else 0.0])


class Exact(Rows):
    """Numbers alone."""

    noisy = False


class Counter:
    """An iterator with a state."""

    def __init__(self, numbers) -> None:
        self.numbers, self.position = numbers, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == len(self.numbers):
            raise StopIteration
        self.position += 1
        return float(self.numbers[self.position - 1])

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Unsized(IterableDataset):
    """Eleven numbers, divided among the workers, without a length."""

    def __iter__(self):
        worker = get_worker_info()
        return Counter([*range(11)] if worker is None else [*range(worker.id, 11, 2)])


WORKERS = pytest.mark.parametrize(
    "workers",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["0", "2", "2-persistent"],
)


@pytest.fixture
def loader_class():
    """torchdata's loader; it is not a dependency."""
    module = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="torchdata is not installed"
    )
    return module.StatefulDataLoader


@pytest.mark.process
@WORKERS
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize(
    "options",
    [
        lambda: {"shuffle": True},
        lambda: {},
        lambda: {"sampler": WeightedRandomSampler([1.0] * 10, 10)},
        lambda: {"sampler": RandomSampler(range(10))},
        lambda: {"sampler": RandomSampler(range(10), replacement=True)},
    ],
    ids=["shuffled", "in-order", "weighted", "random", "replacement"],
)
def test_a_map_style_loader_of_torchdata_resumes_exactly(loader_class, options, workers, limit):
    # What workers of such a loader draw is not restored; see Stateful.
    rows = Exact() if workers else Rows()
    assert_resumes_exactly(
        lambda: loader_class(rows, batch_size=3, **options(), **workers),
        steps=9,
        entered_at=(4, 5) if workers else None,  # where an epoch ends, and inside a later one
        limit=limit,
    )


@pytest.mark.process
@WORKERS
@pytest.mark.parametrize("limit", [None, 2])
def test_a_loader_of_torchdata_without_a_length_resumes_exactly(loader_class, workers, limit):
    assert_resumes_exactly(
        lambda: loader_class(Unsized(), batch_size=2, **workers),
        steps=13,
        entered_at=(6, 7) if workers else None,
        limit=limit,
    )
