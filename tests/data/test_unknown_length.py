"""Data that does not say how long it is: an epoch ends where its iterator ends."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.stream import training_stream
from plugin_trainer.errors import DataError


class Lines:
    """Numbers without a length, and a count of those that were read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read = 0
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)

    def __iter__(self):
        for number in range(self.size):
            self.read += 1
            yield torch.tensor([number])


class Sharded(IterableDataset):
    """Seven numbers, divided among the workers."""

    def __iter__(self):
        worker = get_worker_info()
        return iter(range(7) if worker is None else range(worker.id, 7, worker.num_workers))


def windows_of(data, count, *, epoch=0, batch=0, **options):
    """Windows, each asked for its end after its step, as the loop does."""
    stream = training_stream(data, seed=0, **options)
    taken = []
    for window in islice(stream.windows(epoch=epoch, batch=batch), count):
        taken.append((window, window.last))
    return taken


def numbers(taken):
    return [[batch.flatten().tolist() for batch in window.micro_batches] for window, _ in taken]


def test_it_has_no_number_of_batches_or_steps():
    stream = training_stream(Lines(3), seed=0)
    assert stream.batches_per_epoch is None and stream.steps_per_epoch is None
    assert stream.inexact_because == "the training data is a Lines, not a DataLoader"


def test_an_epoch_ends_where_the_iterator_ends():
    taken = windows_of(Lines(3), 7)
    assert numbers(taken) == [[[0]], [[1]], [[2]]] * 2 + [[[0]]]
    assert [last for _, last in taken] == [False, False, True] * 2 + [False]
    assert [window.first for window, _ in taken] == [True, False, False] * 2 + [True]
    assert [window.epoch for window, _ in taken] == [0] * 3 + [1] * 3 + [2]
    assert [window.batch for window, _ in taken] == [1, 2, 3, 1, 2, 3, 1]


def test_the_windows_are_the_same_if_nobody_asks_for_their_end():
    windows = training_stream(Lines(3), seed=0).windows(epoch=0, batch=0)
    assert [(window.epoch, window.batch) for window in islice(windows, 4)] == [
        *[(0, 1), (0, 2), (0, 3), (1, 1)],
    ]


def test_a_window_keeps_its_answer_when_the_stream_has_gone_on():
    windows = [*islice(training_stream(Lines(3), seed=0).windows(epoch=0, batch=0), 3)]
    assert [window.last for window in windows] == [False, False, True]


def test_it_is_looked_ahead_into_when_asked_and_not_before():
    data = Lines(3)
    windows = training_stream(data, seed=0).windows(epoch=0, batch=0)
    window = next(windows)
    assert data.read == 1
    assert window.last is False and window.last is False
    assert data.read == 2
    next(windows)
    assert data.read == 2


@pytest.mark.parametrize(
    ("size", "expected"), [(4, [[[0], [1]], [[2], [3]]]), (5, [[[0], [1]], [[2], [3]], [[4]]])]
)
def test_the_last_window_of_accumulation_may_be_short(size, expected):
    taken = windows_of(Lines(size), len(expected) + 1, accumulate=2)
    assert numbers(taken) == [*expected, [[0], [1]]]
    assert [last for _, last in taken] == [False] * (len(expected) - 1) + [True, False]


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_an_iterable_data_set(workers):
    data = DataLoader(Sharded(), batch_size=2, num_workers=workers)
    taken = windows_of(data, 8)
    epochs = [numbers(taken[:4]), numbers(taken[4:])]
    assert epochs[0] == epochs[1]
    assert sorted(n for (batch,) in epochs[0] for n in batch) == [*range(7)]
    assert [last for _, last in taken] == [False, False, False, True] * 2
    reason = "the training data set is iterable, so its order is its own"
    assert training_stream(data, seed=0).inexact_because == reason


def test_a_limit_ends_it_without_loading_more():
    data = Lines(9)
    taken = windows_of(data, 4, limit=2)
    assert numbers(taken) == [[[0]], [[1]]] * 2
    assert [last for _, last in taken] == [False, True] * 2
    assert data.read == 4


def test_it_may_end_before_its_limit():
    assert [last for _, last in windows_of(Lines(2), 3, limit=5)] == [False, True, False]


# ------------------------------------------------------------------------------------------- resume


def test_a_cursor_skips_what_was_consumed():
    assert numbers(windows_of(Lines(3), 2, batch=2)) == [[[2]], [[0]]]


def test_a_cursor_at_an_epochs_end_begins_the_next():
    taken = windows_of(Lines(3), 1, batch=3)
    assert numbers(taken) == [[[0]]] and taken[0][0].epoch == 1


def test_an_epochs_end_is_remembered_so_that_it_is_not_loaded_to_be_found():
    stream = training_stream(Lines(3), seed=0)
    states = []
    for window in islice(stream.windows(epoch=0, batch=0), 3):
        assert window.last is (window.batch == 3)
        states.append(stream.state_dict())
    assert states == [{}, {}, {"epoch": 0, "batch": 3, "over": True}]

    data = Lines(3)
    again = training_stream(data, seed=0)
    again.load_state_dict(states[-1])
    window = next(again.windows(epoch=0, batch=3))
    assert (window.epoch, window.batch) == (1, 1) and data.read == 1


def test_an_end_that_another_cursor_had_is_not_taken_for_ones_own():
    stream = training_stream(Lines(3), seed=0)
    stream.load_state_dict({"epoch": 0, "batch": 3, "over": True})
    assert next(stream.windows(epoch=0, batch=1)).batch == 2


def test_a_state_that_was_loaded_is_given_back_until_training_goes_on():
    stream = training_stream(Lines(3), seed=0)
    state = {"epoch": 0, "batch": 3, "over": True}
    stream.load_state_dict(state)
    assert stream.state_dict() == state
    next(stream.windows(epoch=0, batch=3))
    assert stream.state_dict() == {}


def test_every_epoch_is_told():
    data = Lines(2)
    windows_of(data, 3, epoch=4, batch=1)
    assert data.told == [4, 5]


# ------------------------------------------------------------------------------------------- errors


def test_a_loader_that_yields_nothing_is_an_error_and_not_an_endless_loop():
    with pytest.raises(DataError, match="the training data yielded no batch in a whole epoch"):
        next(training_stream(Lines(0), seed=0).windows(epoch=0, batch=0))


def test_a_loader_that_yields_nothing_in_a_later_epoch_is_an_error():
    class Once(Lines):
        def __iter__(self):
            if not self.read:
                yield from super().__iter__()

    stream = training_stream(Once(2), seed=0).windows(epoch=0, batch=0)
    assert [window.batch for window in islice(stream, 2)] == [1, 2]
    with pytest.raises(DataError, match="yielded no batch in a whole epoch") as caught:
        next(stream)
    assert caught.value.hint == ("it is empty, or what it reads from is used up",)


def test_a_generator_says_in_the_second_epoch_that_it_has_but_one():
    stream = training_stream((torch.zeros(1) for _ in range(2)), seed=0)
    windows = stream.windows(epoch=0, batch=0)
    assert [window.last for window in islice(windows, 2)] == [False, True]
    with pytest.raises(DataError, match="can be iterated only once, and another epoch begins"):
        next(windows)


def test_an_endless_generator_with_a_limit_has_many_epochs():
    taken = windows_of((torch.tensor([n]) for n in range(99)), 5, limit=2)
    assert numbers(taken) == [[[0]], [[1]], [[2]], [[3]], [[4]]]


def test_a_length_that_is_too_short_holds():
    class Modest(Lines):
        def __len__(self):
            return 2

    assert numbers(windows_of(Modest(5), 3)) == [[[0]], [[1]], [[0]]]


def test_an_evaluation_of_it_can_be_limited():
    data = Lines(9)
    assert len([*evaluation_batches(data, batch_size=1, limit=2)]) == 2
    assert data.read == 2
