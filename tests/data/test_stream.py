"""Training data as one stream of windows that can be entered anywhere."""

from __future__ import annotations

import random
import weakref
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset as Table
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)

from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.stream import training_stream
from plugin_trainer.errors import DataError


class Counting(Dataset):
    """Numbers, and a record of which of them were loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


class Unsized(Dataset):
    def __getitem__(self, index: int) -> int:
        return index


class Drawing(Dataset):
    """Each sample is what is drawn from every random stream while it is loaded."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


class Sized(IterableDataset):
    def __iter__(self):
        return iter(range(10))

    def __len__(self) -> int:
        return 10


class Loader(DataLoader):
    """A loader of a class of its own."""


class Backwards(SequentialSampler):
    """A sampler of a class of its own."""

    def __iter__(self):
        return reversed(range(10))


class Pairs(BatchSampler):
    """A batch sampler of a class of its own."""


class Liar:
    """Promises more than it has."""

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return iter([torch.zeros(2)])


def take(stream, count, *, epoch=0, batch=0):
    return list(islice(stream.windows(epoch=epoch, batch=batch), count))


def numbers(windows):
    return [[batch.tolist() for batch in window.micro_batches] for window in windows]


def samples(windows):
    """Every number of the windows, in order."""
    return [n for window in windows for batch in window.micro_batches for n in batch.tolist()]


def loader(size=10, **options):
    return DataLoader(Counting(size), **{"batch_size": 3, "shuffle": True, **options})


# -------------------------------------------------------------------------------------------- order


def test_every_epoch_has_all_samples_in_an_order_of_its_own():
    stream = training_stream(loader(), seed=0)
    windows = take(stream, 12)
    epochs = [samples(windows[at : at + 4]) for at in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [window.epoch for window in windows] == [0] * 4 + [1] * 4 + [2] * 4
    assert [window.batch for window in windows] == [1, 2, 3, 4] * 3
    assert [window.first for window in windows] == [True, False, False, False] * 3
    assert [window.last for window in windows] == [False, False, False, True] * 3


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_cursor_gives_the_tail_and_loads_nothing_before_it(epoch, batch):
    whole = take(training_stream(loader(), seed=5), 16)[4 * epoch + batch :]
    data = loader()
    tail = take(training_stream(data, seed=5), len(whole), epoch=epoch, batch=batch)
    assert numbers(tail) == numbers(whole)
    assert data.dataset.loaded == samples(whole)


@pytest.mark.process
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_do_not_change_the_order(persistent):
    alone = numbers(take(training_stream(loader(), seed=1), 8))
    workers = loader(num_workers=2, persistent_workers=persistent)
    assert numbers(take(training_stream(workers, seed=1), 8)) == alone


@pytest.mark.process
def test_what_workers_draw_depends_on_the_batch_alone():
    def drawn(workers, batch):
        data = DataLoader(Drawing(), batch_size=2, shuffle=True, num_workers=workers)
        windows = take(training_stream(data, seed=0), 6 - batch, batch=batch)
        return torch.stack([window.micro_batches[0] for window in windows])

    whole = drawn(2, 0)
    assert torch.equal(drawn(1, 0), whole)
    assert torch.equal(drawn(2, 3), whole[3:])
    assert len(whole[..., 1:].flatten().unique()) == 12 * 3


def test_the_global_random_streams_do_not_move():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    take(training_stream(loader(), seed=0), 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_drop_last_and_the_order_of_the_data_are_kept():
    plain = training_stream(loader(shuffle=False, drop_last=True), seed=0)
    assert numbers(take(plain, 3)) == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]]]
    assert plain.batches_per_epoch == 3


def test_what_else_a_loader_has_is_kept():
    def doubled(samples):
        return torch.tensor(samples) * 2

    stream = training_stream(loader(shuffle=False, collate_fn=doubled), seed=0)
    assert numbers(take(stream, 1)) == [[[0, 2, 4]]]


def test_a_data_set_alone_is_shuffled_in_batches_of_the_runs_size():
    stream = training_stream(Counting(10), seed=0, batch_size=4)
    (first, *_) = take(stream, 3)
    assert len(first.micro_batches[0]) == 4
    assert stream.batches_per_epoch == 3
    assert stream.inexact_because == ""


# ------------------------------------------------------------------------------------- accumulation


def test_a_window_holds_the_micro_batches_of_a_step_and_the_last_may_be_short():
    stream = training_stream(loader(13, shuffle=False), seed=0, accumulate=2)
    windows = take(stream, 4)
    assert [len(window.micro_batches) for window in windows] == [2, 2, 1, 2]
    assert [window.batch for window in windows] == [2, 4, 5, 2]
    assert [window.last for window in windows] == [False, False, True, False]
    assert stream.steps_per_epoch == 3 and stream.batches_per_epoch == 5


def test_more_micro_batches_than_an_epoch_has_make_one_window():
    stream = training_stream(loader(), seed=0, accumulate=99)
    assert stream.steps_per_epoch == 1
    assert len(take(stream, 1)[0].micro_batches) == 4


# --------------------------------------------------------------------------------------- any source


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            lambda: loader(shuffle=None, sampler=Backwards(range(10))),
            "the training loader has a sampler of its own (Backwards)",
        ),
        (
            lambda: DataLoader(
                Counting(10), batch_sampler=Pairs(SequentialSampler(range(10)), 2, False)
            ),
            "the training loader has a batch sampler of its own (Pairs)",
        ),
        (
            lambda: DataLoader(Sized(), batch_size=2),
            "the training data set is iterable, so its order is its own",
        ),
        (lambda: Loader(Counting(10)), "the training data is a Loader, not a DataLoader"),
        (lambda: [torch.zeros(2)] * 3, "the training data is a list, not a DataLoader"),
    ],
)
def test_what_has_an_order_of_its_own_is_taken_as_it_is_and_says_so(source, reason):
    stream = training_stream(source(), seed=0)
    assert stream.inexact_because == reason
    assert len(take(stream, 2 * stream.batches_per_epoch)) == 2 * stream.batches_per_epoch


@pytest.mark.parametrize("data", [lambda: loader(), lambda: loader(shuffle=False)])
def test_a_plain_loader_resumes_exactly(data):
    assert training_stream(data(), seed=0).inexact_because == ""


def test_a_cursor_in_any_other_iterable_skips_what_was_consumed():
    batches = [torch.tensor([number]) for number in range(4)]
    stream = training_stream(batches, seed=0)
    assert numbers(take(stream, 3, batch=2)) == [[[2]], [[3]], [[0]]]


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "source",
    [
        lambda: loader(0, shuffle=False),
        lambda: [],
        lambda: Counting(0),
        lambda: loader(2, drop_last=True),
    ],
)
def test_empty_data_is_refused(source):
    with pytest.raises(DataError, match="the training data holds no batch") as caught:
        training_stream(source(), seed=0)
    assert caught.value.hint == ("it is empty, or smaller than one batch and drop_last is on",)


@pytest.mark.parametrize("source", [Unsized, lambda: DataLoader(Unsized())])
def test_a_data_set_without_a_length_is_refused(source):
    with pytest.raises(DataError, match="the training data has no length: ") as caught:
        training_stream(source(), seed=0)
    assert caught.value.hint == ("give its data set a __len__",)


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_cannot_be_iterated_is_refused(nothing):
    kind = type(nothing).__name__
    with pytest.raises(DataError, match=f"the training data is a {kind}, which cannot be iterated"):
        training_stream(nothing, seed=0)


def test_data_that_ends_early_is_named():
    with pytest.raises(DataError, match="ended before the length it gave"):
        take(training_stream(Liar(), seed=0), 2)


def test_the_window_of_known_data_costs_no_look_ahead():
    data = loader()
    stream = training_stream(data, seed=0)
    (first,) = take(stream, 1)
    assert first.last is False
    assert len(data.dataset.loaded) == 3
    assert stream.state_dict() == {}


def test_an_epoch_is_let_go_before_the_next_begins():
    """Or the workers of two epochs would live at once."""

    class Open:
        def __init__(self):
            self.now = 0

        def __len__(self):
            return 2

        def __iter__(self):
            assert self.now == 0
            self.now += 1
            return self.batches()

        def batches(self):
            try:
                while True:
                    yield torch.zeros(1)
            finally:
                self.now -= 1

    windows = training_stream(Open(), seed=0).windows(epoch=0, batch=0)
    assert [next(windows).epoch for _ in range(6)] == [0, 0, 1, 1, 2, 2]


def test_a_batch_is_let_go_before_the_next_is_loaded():
    class Fresh:
        def __len__(self):
            return 9

        def __iter__(self):
            for _ in range(9):
                assert alive() is None
                batch = torch.zeros(1)
                yield batch
                del batch

    windows = training_stream(Fresh(), seed=0).windows(epoch=0, batch=0)
    alive = lambda: None  # noqa: E731
    for _ in range(4):
        alive = weakref.ref(next(windows).micro_batches[0])


# -------------------------------------------------------------------------------------------- limit


def test_a_limit_makes_an_epoch_of_its_first_batches():
    whole = training_stream(loader(), seed=0)
    data = loader()
    stream = training_stream(data, seed=0, limit=2)
    assert stream.batches_per_epoch == 2 and stream.steps_per_epoch == 2
    windows = take(stream, 4)
    assert [window.last for window in windows] == [False, True] * 2
    assert [window.epoch for window in windows] == [0, 0, 1, 1]
    assert numbers(windows[:2]) == numbers(take(whole, 2))
    assert numbers(windows[2:]) == numbers(take(whole, 2, epoch=1))
    assert len(data.dataset.loaded) == 4 * 3


def test_a_limit_beyond_an_epoch_changes_nothing():
    assert training_stream(loader(), seed=0, limit=9).batches_per_epoch == 4
    assert training_stream([1, 2], seed=0, limit=9).batches_per_epoch == 2


def test_a_limited_epoch_of_any_iterable_begins_anew():
    stream = training_stream([torch.tensor([n]) for n in range(5)], seed=0, limit=2, accumulate=2)
    assert stream.batches_per_epoch == 2 and stream.steps_per_epoch == 1
    assert numbers(take(stream, 2)) == [[[0], [1]]] * 2


def test_an_evaluations_limit_loads_no_batch_more_and_holds_each_time():
    data = Counting(10)
    batches = evaluation_batches(data, batch_size=3, limit=2)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert data.loaded == [0, 1, 2, 3, 4, 5]
    assert len([*batches]) == 2
    assert len([*evaluation_batches(loader(), batch_size=9, limit=9)]) == 4


# ------------------------------------------------------------------------- data sets of other homes


class Duck:
    """A map-style data set that derives from nothing."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


def table():
    rows = {"x": [[float(n)] for n in range(8)], "labels": [n % 2 for n in range(8)]}
    return Table.from_dict(rows)


def test_a_hugging_face_data_set_is_shuffled_and_batched():
    stream = training_stream(table().with_format("torch"), seed=0, batch_size=4)
    assert stream.steps_per_epoch == 2 and stream.inexact_because == ""
    batches = [batch for window in take(stream, 2) for batch in window.micro_batches]
    assert [tuple(batch["x"].shape) for batch in batches] == [(4, 1), (4, 1)]
    order = [int(x) for batch in batches for x in batch["x"]]
    assert sorted(order) == [*range(8)] != order
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [n % 2 for n in order]


def test_an_unformatted_hugging_face_data_set_gives_tensors_where_it_can():
    (window,) = take(training_stream(table(), seed=0, batch_size=4), 1)
    assert tuple(window.micro_batches[0]["labels"].shape) == (4,)


def test_what_has_a_length_and_an_index_alone_is_a_data_set_too():
    stream = training_stream(Duck(), seed=0, batch_size=4)
    assert stream.steps_per_epoch == 2 and stream.inexact_because == ""
    (window,) = take(stream, 1)
    assert len(window.micro_batches[0]) == 4


@pytest.mark.parametrize(
    "data",
    [
        [(torch.zeros(4), torch.tensor(1))],
        [{"x": torch.zeros(4), "label": 0.5}],
        table().to_iterable_dataset(),
        table().with_format("torch").to_iterable_dataset(),
    ],
)
def test_samples_in_place_of_batches_are_refused(data):
    with pytest.raises(DataError, match="the training data gives single samples where") as caught:
        take(training_stream(data, seed=0), 1)
    assert "DataLoader(data" in caught.value.hint[0]


@pytest.mark.parametrize(
    "data",
    [
        table().with_format("torch").to_iterable_dataset().batch(4),
        [(torch.zeros(4, 2), torch.zeros(4))],
        [(torch.zeros(4), {"labels": torch.tensor(1)})],
        [torch.tensor(1)],
    ],
)
def test_iterables_of_batches_are_taken(data):
    assert len(take(training_stream(data, seed=0), 1)) == 1
