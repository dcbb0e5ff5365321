"""Several tasks as one stream: what each gives, where each goes on, what cannot be mixed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from plugin_trainer.data.mixing import Mixing
from plugin_trainer.data.stream import TrainStream, training_stream
from plugin_trainer.errors import DataError


class Numbers(Dataset):
    """Numbered samples that remember which of them were loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.loaded.append(index)
        return {"x": torch.tensor(index)}


class Unsized(IterableDataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        return ({"x": torch.tensor([index])} for index in range(self.size))


def loader(size: int, batch_size: int = 2, **options) -> DataLoader:
    return DataLoader(Numbers(size), batch_size=batch_size, shuffle=True, **options)


def stream(data, *, accumulate: int = 1, limit: int | None = None, **mixing) -> TrainStream:
    return training_stream(
        data, seed=0, accumulate=accumulate, limit=limit, mixing=Mixing(**mixing)
    )


def taken(stream: TrainStream, count: int, *, epoch: int = 0, batch: int = 0) -> list:
    windows = islice(stream.windows(epoch=epoch, batch=batch), count)
    return [(b["task"], b["x"].tolist()) for w in windows for b in w.micro_batches]


STRATEGIES = [
    pytest.param({}, id="round_robin"),
    pytest.param({"until": "first"}, id="round_robin-until-first"),
    pytest.param({"strategy": "proportional"}, id="proportional"),
    pytest.param({"strategy": "temperature", "temperature": 3.0}, id="temperature"),
]


def tasks() -> dict:
    return {"a": loader(11), "b": loader(3), "c": loader(6, batch_size=3)}


def test_batches_carry_the_name_of_their_task_and_keep_the_batch_size_of_its_loader():
    batches = taken(stream(tasks()), 10)
    assert [task for task, _ in batches] == ["a", "b", "c", "a", "b", "c", "a", "a", "a", "a"]
    assert {len(x) for task, x in batches if task == "c"} == {3}


def test_a_round_robin_gives_every_sample_once_an_epoch():
    seen: dict[str, Counter] = {"a": Counter(), "b": Counter(), "c": Counter()}
    for task, numbers in taken(stream(tasks()), 10):
        seen[task].update(numbers)
    assert seen == {"a": Counter(range(11)), "b": Counter(range(3)), "c": Counter(range(6))}


def test_tasks_of_one_size_do_not_share_an_order():
    batches = taken(stream({"a": loader(40), "b": loader(40)}), 40)
    assert [x for task, x in batches if task == "a"] != [x for task, x in batches if task == "b"]


def test_a_task_goes_on_in_the_next_mixed_epoch_where_it_stopped():
    """With until="first", five batches of the longer task wait for the epochs to come."""
    mixed = stream({"long": loader(14), "short": loader(4)}, until="first")
    assert mixed.batches_per_epoch == 4
    numbers = Counter()
    for task, x in taken(mixed, 14):  # 7 batches of each: a whole epoch of the longer task
        if task == "long":
            numbers.update(x)
    assert numbers == Counter(range(14))


def test_a_small_task_begins_anew_in_another_order_within_one_mixed_epoch():
    mixed = stream({"large": loader(180), "small": loader(20)}, strategy="temperature")
    assert mixed.quotas == {"large": 75, "small": 25}
    small = [x for task, x in taken(mixed, 100) if task == "small"]
    first, second = small[:10], small[10:20]
    for pass_ in (first, second):
        assert sorted(number for batch in pass_ for number in batch) == list(range(20))
    assert first != second


@pytest.mark.parametrize("mixing", STRATEGIES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_mixture_entered_anywhere_goes_on_as_if_it_had_never_stopped(mixing, accumulate):
    whole = [
        (window.epoch, window.batch, [(b["task"], b["x"].tolist()) for b in window.micro_batches])
        for window in islice(
            stream(tasks(), accumulate=accumulate, **mixing).windows(epoch=0, batch=0), 24
        )
    ]
    for position, (epoch, batch, _) in enumerate(whole[:12]):
        rest = stream(tasks(), accumulate=accumulate, **mixing).windows(epoch=epoch, batch=batch)
        following = [
            [(b["task"], b["x"].tolist()) for b in window.micro_batches]
            for window in islice(rest, 12)
        ]
        assert following == [given for _, _, given in whole[position + 1 : position + 13]]


@pytest.mark.parametrize("mixing", STRATEGIES)
def test_nothing_is_loaded_to_get_to_a_place(mixing):
    data = tasks()
    mixed = stream(data, **mixing)
    place = mixed.batches_per_epoch - 1
    window = next(mixed.windows(epoch=5, batch=place))
    (batch,) = window.micro_batches
    loaded = {task: its.dataset.loaded for task, its in data.items()}
    assert sum(map(len, loaded.values())) == len(batch["x"])
    assert loaded[batch["task"]] == batch["x"].tolist()


@pytest.mark.parametrize("mixing", STRATEGIES)
def test_cursors_count_the_batches_that_each_task_has_given(mixing):
    mixed = stream(tasks(), **mixing)
    given = Counter()
    for window in islice(mixed.windows(epoch=0, batch=0), 25):
        given.update(b["task"] for b in window.micro_batches)
        cursors = mixed.cursors(epoch=window.epoch, batch=window.batch)
        assert {task: count for task, count in cursors.items() if count} == dict(given)


def test_a_limit_is_of_the_mixed_epoch():
    mixed = stream(tasks(), limit=4)
    assert mixed.batches_per_epoch == 4
    assert [task for task, _ in taken(mixed, 8)] == ["a", "b", "c", "a"] * 2


def test_workers_of_every_task_give_the_same_batches():
    def data(workers: int) -> dict:
        return {
            "a": loader(11, num_workers=workers),
            "b": loader(3, num_workers=workers),
        }

    mixed = stream(data(1))
    assert taken(mixed, 12) == taken(stream(data(0)), 12)
    mixed.close()


def test_data_sets_without_a_loader_are_batched():
    mixed = training_stream({"a": Numbers(5), "b": Numbers(4)}, seed=0, batch_size=2)
    assert mixed.quotas == {"a": 3, "b": 2}


def test_a_round_robin_needs_no_lengths_and_says_that_it_resumes_inexactly():
    mixed = stream({"a": DataLoader(Unsized(3), batch_size=None), "b": loader(4)})
    assert mixed.batches_per_epoch is None
    assert "task 'a': the training data set is iterable" in mixed.inexact_because
    windows = list(islice(mixed.windows(epoch=0, batch=0), 10))
    assert [w.micro_batches[0]["task"] for w in windows] == ["a", "b", "a", "b", "a"] * 2
    assert [w.last for w in windows[:5]] == [False] * 4 + [True]


def test_a_round_robin_without_lengths_may_end_with_the_first_task_too():
    data = {"a": DataLoader(Unsized(2), batch_size=None), "b": loader(8)}
    windows = list(islice(stream(data, until="first").windows(epoch=0, batch=0), 8))
    assert [w.micro_batches[0]["task"] for w in windows] == ["a", "b", "a", "b"] * 2


def test_a_round_robin_without_lengths_is_entered_by_skipping():
    def data() -> dict:
        return {"a": DataLoader(Unsized(3), batch_size=None), "b": [{"x": torch.tensor([9])}]}

    assert taken(stream(data()), 2, batch=2) == taken(stream(data()), 4)[2:]


# ---------------------------------------------------------------------------- what cannot be mixed


@pytest.mark.parametrize(
    ("data", "mixing", "message"),
    [
        ({}, {}, "train\\(\\) gave no task"),
        ({"a": loader(4), "b": []}, {}, "the training data of task 'b' holds no batch"),
        ({"a": loader(4), "b": 7}, {}, "the training data of task 'b' is a int, which cannot"),
        ({"a/b": loader(4)}, {}, "a task cannot be called 'a/b'"),
        ({3: loader(4)}, {}, "a task cannot be called 3"),
        (
            {"a": DataLoader(Unsized(3)), "b": loader(4)},
            {"strategy": "proportional"},
            "the data of 'a' has no length, and a proportional mixture goes by lengths",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_the_first_batch(data, mixing, message):
    with pytest.raises(DataError, match=message):
        stream(data, **mixing)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(2), torch.zeros(2)), "a batch of task 'a' is a tuple, and has no place"),
        ({"task": 1}, "a batch of task 'a' has an entry 'task' already"),
        ({"x": torch.zeros(2), "label": 1}, "gives single samples where batches are needed"),
    ],
)
def test_a_batch_without_a_place_for_its_task_is_refused(batch, message):
    with pytest.raises(DataError, match=message):
        next(stream({"a": [batch]}).windows(epoch=0, batch=0))


def test_a_task_whose_data_ends_before_its_length_is_named():
    class Short(list):
        def __len__(self) -> int:
            return 3

    data = {"a": Short([{"x": torch.zeros(1)}]), "b": loader(8)}
    with pytest.raises(DataError, match="task 'a' ended after 1 batches, before the length of 3"):
        taken(stream(data), 8)
