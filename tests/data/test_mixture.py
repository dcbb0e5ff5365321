"""Several tasks as one stream: what each gives, where each goes on, what cannot be mixed."""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from collections import Counter
from itertools import count, islice

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


@pytest.mark.parametrize("mixing", STRATEGIES)
def test_a_limited_epoch_is_the_beginning_of_a_whole_one(mixing):
    whole, limited = stream(tasks(), **mixing), stream(tasks(), limit=3, **mixing)
    assert limited.batches_per_epoch == 3 and sum(limited.quotas.values()) == 3
    for epoch in (0, 1, 2):
        given = taken(limited, 3, epoch=epoch)
        assert given == taken(whole, 3, epoch=epoch)
    ends = limited.cursors(epoch=1, batch=3)
    assert ends == whole.cursors(epoch=1, batch=3)


def test_what_a_limit_leaves_of_each_task_is_what_is_told_and_warned_of():
    data = {"a": loader(200), "b": loader(4)}
    assert stream(data).warnings[1].startswith("task 'a' ends every epoch alone")
    mixed = stream(data, limit=4)
    assert mixed.quotas == {"a": 2, "b": 2}
    assert mixed.warnings == []


def test_an_epoch_is_planned_once_however_often_the_cursors_are_asked_for(monkeypatch):
    planned = []
    order = Mixing.order

    def counted(self, quotas, *, seed, epoch):
        planned.append(epoch)
        return order(self, quotas, seed=seed, epoch=epoch)

    monkeypatch.setattr(Mixing, "order", counted)
    mixed = stream(tasks(), strategy="proportional")
    for window in islice(mixed.windows(epoch=0, batch=0), 20):
        mixed.cursors(epoch=window.epoch, batch=window.batch)
    assert planned == [0, 1]


class Own:
    """Batches of a kind of its own, that counts what it gives; each pass has another order."""

    def __init__(self, size: int) -> None:
        self.size, self.given, self.passes = size, 0, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        self.passes += 1
        for number in range(self.size):
            self.given += 1
            yield {"x": torch.tensor([1000 * self.passes + number])}


def test_a_task_that_goes_on_in_the_next_mixed_epoch_loads_nothing_twice():
    own = Own(8)
    mixed = stream({"long": own, "short": loader(4)}, until="first")  # 2 batches of each an epoch
    numbers = [x[0] for task, x in taken(mixed, 16) if task == "long"]
    assert numbers == [*range(1000, 1008)]
    assert own.given == 8 and own.passes == 1


def test_an_iterator_with_a_length_goes_on_in_the_next_mixed_epoch():
    class Once:
        def __init__(self) -> None:
            self.numbers = iter(range(6))

        def __len__(self) -> int:
            return 6

        def __iter__(self):
            return self

        def __next__(self):
            return {"x": torch.tensor([next(self.numbers)])}

    mixed = stream({"long": Once(), "short": loader(4)}, until="first")
    assert [x[0] for task, x in taken(mixed, 12) if task == "long"] == [*range(6)]


def test_a_place_that_does_not_follow_is_entered_anew():
    data = tasks()
    mixed = stream(data, until="first")
    first = taken(mixed, 7)
    assert taken(mixed, 7) == first
    assert taken(mixed, 4, epoch=2) == taken(stream(tasks(), until="first"), 4, epoch=2)


@pytest.mark.process
def test_a_task_that_is_through_keeps_no_workers():
    mixed = stream({"long": loader(20, num_workers=1), "short": loader(4, num_workers=1)})
    windows = mixed.windows(epoch=0, batch=0)
    before = len(multiprocessing.active_children())
    assert [next(windows).micro_batches[0]["task"] for _ in range(3)] == ["long", "short", "long"]
    assert len(multiprocessing.active_children()) == before + 2
    assert next(windows).micro_batches[0]["task"] == "short"  # its last one
    assert next(windows).micro_batches[0]["task"] == "long"
    assert len(multiprocessing.active_children()) == before + 1
    mixed.close()
    assert len(multiprocessing.active_children()) == before


@pytest.mark.process
@pytest.mark.parametrize("until", ["all", "first"])
def test_workers_end_though_a_loader_fails_in_the_middle(until):
    class Failing(Numbers):
        def __getitem__(self, index: int):
            raise RuntimeError("broken")

    before = len(multiprocessing.active_children())
    data = {
        "sound": loader(20, num_workers=1),
        "kept": loader(20, num_workers=1, persistent_workers=True),
        "broken": DataLoader(Failing(9), num_workers=1),
    }
    mixed = stream(data, until=until)
    with pytest.raises(RuntimeError, match="broken") as failure:
        taken(mixed, 9)
    mixed.close()
    assert len(multiprocessing.active_children()) == before
    del failure


@pytest.mark.parametrize("data", [{}, {"c": DataLoader(Unsized(3))}], ids=["planned", "unsized"])
def test_no_batch_is_kept_while_the_next_is_loaded(data):
    alive: list[int] = []
    given: list[weakref.ref] = []

    class Watched(Numbers):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            gc.collect()
            alive.append(sum(ref() is not None for ref in given))
            return super().__getitem__(index)

    def watched(size: int) -> DataLoader:
        return DataLoader(Watched(size), batch_size=1)

    for window in islice(stream({"a": watched(3), "b": watched(3), **data}).windows(
        epoch=0, batch=0
    ), 6):  # fmt: skip
        given.append(weakref.ref(window.micro_batches[0]["x"]))
        window.micro_batches.clear()
    assert alive == [0] * len(alive) and len(alive) >= 4


def test_a_task_of_one_batch_and_a_thousand_tasks():
    assert [task for task, _ in taken(stream({"a": loader(2), "b": loader(6)}), 8)] == [
        *("a", "b", "b", "b"), *("a", "b", "b", "b"),
    ]  # fmt: skip
    many = {f"t{number}": loader(2) for number in range(1000)}
    for mixing in ({}, {"strategy": "proportional"}, {"strategy": "temperature"}):
        given = taken(stream(many, **mixing), 1000)
        assert Counter(task for task, _ in given) == dict.fromkeys(many, 1)


def test_a_task_used_up_without_a_length_is_named_and_not_left_out():
    once = ({"x": torch.tensor([number])} for number in range(2))
    mixed = stream({"a": loader(4), "b": once})
    with pytest.raises(DataError, match="task 'b' yielded no batch in epoch 1"):
        taken(mixed, 8)


def test_a_task_without_a_length_and_without_data_is_named():
    with pytest.raises(DataError, match="task 'b' yielded no batch in epoch 0"):
        taken(stream({"a": loader(4), "b": DataLoader(Unsized(0))}), 4)


def test_an_endless_task_goes_on_beside_one_that_ends_the_epoch():
    endless = ({"x": torch.tensor([number])} for number in count())
    mixed = stream({"endless": endless, "short": loader(4)}, until="first")
    numbers = [x[0] for task, x in taken(mixed, 12) if task == "endless"]
    assert numbers == sorted(set(numbers)) and len(numbers) > 5


@pytest.mark.process
@pytest.mark.parametrize("mixing", STRATEGIES)
@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
def test_workers_of_every_task_give_the_same_batches(mixing, persistent):
    def data(workers: int) -> dict:
        more = {"num_workers": workers, "persistent_workers": persistent and workers > 0}
        return {"a": loader(11, **more), "b": loader(3, **more)}

    mixed = stream(data(1), **mixing)
    assert taken(mixed, 20) == taken(stream(data(0), **mixing), 20)
    assert taken(mixed, 8, epoch=1, batch=1) == taken(
        stream(data(0), **mixing), 8, epoch=1, batch=1
    )
    mixed.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("mixing", STRATEGIES)
def test_a_loader_with_a_state_of_its_own_is_entered_at_the_same_batches(mixing):
    """Though it is announced as not exact: what it draws itself may differ."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def data() -> dict:
        return {"a": stateful(Numbers(11), batch_size=2, shuffle=True), "b": loader(4)}

    mixed = stream(data(), **mixing)
    assert mixed.inexact_because.startswith("task 'a': its loader has a state of its own")
    whole = list(islice(mixed.windows(epoch=0, batch=0), 20))
    given = [(b["task"], b["x"].tolist()) for w in whole for b in w.micro_batches]
    for position in (2, 5, 9):
        at = whole[position]
        rest = taken(stream(data(), **mixing), 8, epoch=at.epoch, batch=at.batch)
        assert rest == given[position + 1 : position + 9]


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
