"""Several processes on one stream: together they have every row of every batch, and each once."""

from __future__ import annotations

import random
from collections import namedtuple
from itertools import chain, islice

import numpy as np
import pytest
import torch
from datasets import Dataset as Rows
from datasets.distributed import split_dataset_by_node
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import BatchEncoding

from plugin_trainer.data.rows import take_rows
from plugin_trainer.data.share import WHOLE, Share, StandIn
from plugin_trainer.data.stream import training_stream
from plugin_trainer.errors import DataError

SIZE = 29


class Numbers(Dataset):
    """Numbers, and a record of which of them were loaded."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


class Blocks(Numbers):
    """Asked once, it gives all that was asked for; asked for one, a ready batch in a drawn order.

    The drawn order is another each time: only processes that draw alike have each row once.
    """

    def __getitem__(self, index):
        if isinstance(index, list):
            return torch.tensor(index)
        rows = list(range(index * 10, index * 10 + 1 + index % 5))
        random.shuffle(rows)
        return torch.tensor(rows)


class Streamed(IterableDataset):
    """Numbers in an order drawn from every stream there is."""

    def __iter__(self):
        numbers = list(range(SIZE))
        random.shuffle(numbers)
        for number in np.random.permutation(numbers):
            yield torch.tensor(int(number)) + torch.randint(2, ())


class Backwards(Sampler):
    def __len__(self) -> int:
        return SIZE

    def __iter__(self):
        return iter(torch.randperm(SIZE).tolist())


class Growing(Sampler):
    """Batches of 1, 2, 3, ... numbers."""

    def __iter__(self):
        return iter([[*range(size)] for size in range(1, 8)])


LOADERS = {
    "data set": lambda: Numbers(),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=6, shuffle=True),
    "whole batches": lambda: DataLoader(Numbers(), batch_size=6, drop_last=True),
    "workers": lambda: DataLoader(Numbers(), batch_size=6, shuffle=True, num_workers=2),
    "weighted": lambda: DataLoader(
        Numbers(), batch_size=12, sampler=WeightedRandomSampler([1.0] * SIZE, 20)
    ),
    "asked once": lambda: DataLoader(
        Blocks(), sampler=BatchSampler(RandomSampler(range(SIZE)), 6, False), batch_size=None
    ),
    "index lists": lambda: DataLoader(Numbers(), batch_sampler=[[5, 6, 7], [1], [2, 3]]),
    "ready by index": lambda: DataLoader(Blocks(7), batch_size=None, shuffle=True),
    "ready by index in workers": lambda: DataLoader(
        Blocks(7), batch_size=None, shuffle=True, num_workers=2
    ),
    "batch sampler": lambda: DataLoader(Numbers(), batch_sampler=Growing()),
    "sampler": lambda: DataLoader(Numbers(), batch_size=6, sampler=Backwards()),
    "sampler in workers": lambda: DataLoader(
        Numbers(), batch_size=6, sampler=Backwards(), num_workers=2
    ),
    "iterable": lambda: DataLoader(Streamed(), batch_size=6),
    "list": lambda: [torch.arange(5), torch.arange(2), torch.arange(1)],
    "stateful": lambda: StatefulDataLoader(Numbers(), batch_size=6, shuffle=True),
    "tasks": lambda: {
        "a": DataLoader(Table(11), batch_size=6, shuffle=True),
        "b": [{"x": torch.arange(100, 101)}],
    },
}


class Table(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        return {"x": index}


def stream_of(data, share: Share = WHOLE, **options):
    return training_stream(data, seed=3, batch_size=6, accumulate=2, share=share, **options)


def rows_of(batch) -> list[int]:
    """The numbers of a batch, after the name of its task."""
    if isinstance(batch, StandIn):
        assert len(rows_of(batch.batch)) >= 1
        return []
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch["x"].tolist()


def task_of(batch) -> str:
    batch = batch.batch if isinstance(batch, StandIn) else batch
    return batch["task"] if isinstance(batch, dict) else ""


def windows_of(stream, count: int, epoch: int = 0, batch: int = 0):
    taken = list(islice(stream.windows(epoch=epoch, batch=batch), count))
    stream.close()
    return taken


@pytest.mark.process
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", LOADERS)
def test_processes_together_have_every_row_of_every_batch_once(kind, size):
    streams = []
    for rank in range(size):
        random.seed(rank), np.random.seed(rank), torch.manual_seed(rank)
        streams.append(windows_of(stream_of(LOADERS[kind](), Share(rank, size)), 12))
    seen = 0
    for windows in zip(*streams, strict=True):
        assert len({(its.epoch, its.batch, its.first, its.samples) for its in windows}) == 1
        samples = 0
        for parts in zip(*[its.micro_batches for its in windows], strict=True):
            rows = [rows_of(part) for part in parts]
            joined = [*chain.from_iterable(rows)]
            lengths = [len(own) for own in rows]
            assert lengths == [len(Share(rank, size).rows(len(joined))) for rank in range(size)]
            assert len({task_of(part) for part in parts}) == 1
            samples += len(joined)
            if kind != "weighted" and kind != "iterable":  # which give the same number twice
                assert len(set(joined)) == len(joined)
        assert samples == windows[0].samples
        seen += samples
    assert seen > 20


@pytest.mark.process
@pytest.mark.parametrize(
    "kind", ["data set", "shuffled", "workers", "weighted", "asked once", "index lists", "list"]
)
def test_the_batches_are_those_of_one_process(kind):
    alone = windows_of(stream_of(LOADERS[kind]()), 9)
    shared = [windows_of(stream_of(LOADERS[kind](), Share(rank, 3)), 9) for rank in range(3)]
    for whole, *parts in zip(alone, *shared, strict=True):
        for batch, *cut in zip(
            whole.micro_batches, *[its.micro_batches for its in parts], strict=True
        ):
            assert [*chain.from_iterable(map(rows_of, cut))] == batch.tolist()
        assert {its.samples for its in parts} == {whole.samples}
        assert whole.samples == sum(map(len, whole.micro_batches))


def test_nothing_but_its_own_samples_is_loaded():
    data = [Numbers(), Numbers()]
    for rank in range(2):
        loader = DataLoader(data[rank], batch_size=6, shuffle=True)
        assert windows_of(stream_of(loader, Share(rank, 2)), 3)[-1].last
    assert sorted(data[0].loaded + data[1].loaded) == [*range(SIZE)]
    assert len(data[0].loaded) == 15


@pytest.mark.process
@pytest.mark.parametrize("kind", ["workers", "iterable", "stateful", "tasks", "index lists"])
def test_a_share_goes_on_where_it_stopped(kind):
    def batches(stream, count, **place):
        windows = windows_of(stream, count, **place)
        return [(rows_of(its), task_of(its)) for window in windows for its in window.micro_batches]

    whole = batches(stream_of(LOADERS[kind](), Share(1, 2)), 7)
    stream = stream_of(LOADERS[kind](), Share(1, 2))
    windows = stream.windows(epoch=0, batch=0)
    first = [next(windows) for _ in range(2)]
    state = stream.state_dict()
    assert state if kind == "stateful" else not state
    stream.close()
    follower = stream_of(LOADERS[kind](), Share(1, 2))
    follower.load_state_dict(state)
    place = {"epoch": first[-1].epoch, "batch": first[-1].batch}
    taken = sum(len(window.micro_batches) for window in first)
    assert batches(follower, 5, **place) == whole[taken:]


class Drawn(Numbers):
    def __getitem__(self, index: int):
        return torch.rand(())


@pytest.mark.process
def test_workers_of_several_processes_draw_unlike_numbers():
    def drawn(share: Share) -> list[float]:
        loader = DataLoader(Drawn(12), batch_size=6, num_workers=1)
        return windows_of(stream_of(loader, share), 1)[0].micro_batches[0].tolist()

    first, second = drawn(Share(0, 2)), drawn(Share(1, 2))
    assert not set(first) & set(second)
    assert not set(first) & set(drawn(Share()))


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        (lambda: Numbers(), "batch_size = 4 or 8: it is that of all processes together"),
        (lambda: DataLoader(Numbers(), batch_size=6), "give its loader a batch size of 4 or 8: "),
        (
            lambda: DataLoader(
                Numbers(), batch_size=None, sampler=BatchSampler(SequentialSampler("ab"), 6, False)
            ),
            "4 or 8",
        ),
        (lambda: DataLoader(Streamed(), batch_size=6), "4 or 8"),
        (lambda: DataLoader(Numbers(), batch_size=6, sampler=Backwards()), "4 or 8"),
        (lambda: DataLoader(Numbers(), batch_size=2), "give its loader a batch size of 4: "),
        (lambda: StatefulDataLoader(Numbers(), batch_size=6), "4 or 8"),
    ],
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused_before_anything_is_loaded(loader, named):
    data = loader()
    with pytest.raises(DataError, match=r"training data is \d, and 4 processes cannot") as failure:
        stream_of(data, Share(1, 4))
    assert named in failure.value.hint[0]
    assert not getattr(getattr(data, "dataset", data), "loaded", [])
    with pytest.raises(DataError, match=r"training data of task 'b' is \d, and 4 processes"):
        stream_of({"a": LOADERS["list"](), "b": loader()}, Share(0, 4))


@pytest.mark.parametrize("kind", ["index lists", "ready by index", "batch sampler", "list"])
def test_ready_batches_of_any_size_are_shared(kind):
    assert len(windows_of(stream_of(LOADERS[kind](), Share(1, 7)), 4)) == 4


def by_sampler():
    return DataLoader(Numbers(), batch_size=6, sampler=DistributedSampler(range(SIZE), 2, 0))


def by_node():
    rows = Rows.from_dict({"x": [*range(12)]}).to_iterable_dataset(num_shards=2)
    return DataLoader(split_dataset_by_node(rows, 0, 2), batch_size=6)


@pytest.mark.parametrize(
    ("loader", "by"), [(by_sampler, "DistributedSampler"), (by_node, "split_dataset_by_node")]
)
def test_data_that_is_divided_already_is_refused(loader, by):
    with pytest.raises(DataError, match=f"training data is divided .* by .*{by}") as failure:
        stream_of(loader(), Share(0, 2))
    assert "leave that out" in failure.value.hint[0]
    with pytest.raises(DataError, match=r"the training \('a'\) data is divided"):
        stream_of({"a": loader()}, Share(0, 2))
    stream_of(loader())


def test_a_single_sample_is_still_told_from_a_batch():
    with pytest.raises(DataError, match="gives single samples"):
        windows_of(stream_of([(torch.arange(4), 1)] * 3, Share(0, 2)), 1)
    with pytest.raises(DataError, match="gives single samples"):
        windows_of(stream_of({"a": [{"x": torch.arange(4), "label": 1}]}, Share(1, 2)), 1)


# ------------------------------------------------------------------------------ rows of a batch

Pair = namedtuple("Pair", ["x", "label"])


def part(batch, rank: int, size: int = 2):
    return take_rows(batch, Share(rank, size)).batch


def test_rows_are_taken_of_whatever_has_them():
    batch = {
        "x": torch.arange(10).view(5, 2),
        "array": np.arange(5),
        "texts": ["a", "b", "c", "d", "e"],
        "boxes": [torch.zeros(3), torch.ones(1), torch.ones(5), torch.ones(2), torch.ones(5)],
        "two": [torch.arange(5), {"y": torch.arange(5)}],
        "words": (("a", "b", "c", "d", "e"), ["f", "g", "h", "i", "j"]),
        "deep": {"y": torch.arange(5)},
        "names": ["one", "other"],
        "temperature": torch.tensor(2.0),
        "scale": np.array(3.0),
        "split": "train",
        "number": 5,
        "none": None,
    }
    first, second = part(batch, 0), part(batch, 1)
    assert first["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second["x"].tolist() == [[6, 7], [8, 9]]
    assert second["array"].tolist() == [3, 4]
    assert second["texts"] == ["d", "e"]
    assert [len(row) for row in second["boxes"]] == [2, 5]
    assert second["two"][0].tolist() == second["two"][1]["y"].tolist() == [3, 4]
    assert second["words"] == (("d", "e"), ["i", "j"])
    assert second["deep"]["y"].tolist() == [3, 4]
    for name in ("names", "temperature", "scale", "split", "number", "none"):
        assert second[name] is batch[name] or second[name] == batch[name]
    assert take_rows(batch, Share(1, 2)).rows == 5


@pytest.mark.parametrize(
    ("batch", "column"),
    [
        (torch.arange(5), lambda its: its),
        (np.arange(5), lambda its: its),
        ([torch.arange(5), torch.arange(5)], lambda its: its[1]),
        ((torch.arange(5), 3), lambda its: its[0]),
        (Pair(torch.arange(5), torch.arange(5)), lambda its: its.label),
        (BatchEncoding({"x": torch.arange(5)}), lambda its: its["x"]),
        ([{"x": torch.arange(7)} for _ in range(5)], lambda its: its),
        ((["a"] * 5, [{"boxes": torch.zeros(2)} for _ in range(5)]), lambda its: its[1]),
        (([torch.zeros(3, 4, 4) for _ in range(5)], ["a"] * 5), lambda its: its[0]),
        (["a", "b", "c", "d", "e"], lambda its: its),
    ],
)
def test_batches_of_any_shape_keep_it(batch, column):
    parts = [take_rows(batch, Share(rank, 3)) for rank in range(3)]
    assert [its.rows for its in parts] == [5, 5, 5]
    assert {type(its.batch) for its in parts} == {type(batch)}
    assert [len(column(its.batch)) for its in parts] == [2, 2, 1]


def test_the_first_row_stands_in_where_none_is_left():
    parts = [part({"x": torch.tensor([4, 5])}, rank, 3) for rank in range(3)]
    assert [its["x"].tolist() for its in parts[:2]] == [[4], [5]]
    assert isinstance(parts[2], StandIn)
    assert parts[2].batch["x"].tolist() == [4]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(4, 2), "weights": torch.zeros(3)}, "'weights' of a batch has 3 rows"),
        ({"x": torch.zeros(4), "in": {"y": torch.zeros(6)}}, "'in.y' of a batch has 6 rows"),
        ({"x": torch.zeros(4), "in": [torch.zeros(6)]}, "'in.0' of a batch has 6 rows"),
        ({"x": torch.zeros(2), "in": [torch.zeros(2)] * 2}, "'in' of a batch holds 2 tensors of 2"),
        ((torch.zeros(4), np.zeros(2)), "'1' of a batch has 2 rows"),
        ({"x": torch.zeros(4), "m": torch.nn.Linear(1, 1)}, "'m' of a batch is a Linear"),
        (torch.zeros(0, 2), "has no row"),
        ({"x": 1}, "is a dict, in which no rows are found"),
        (object(), "is a object, in which no rows are found"),
    ],
)
def test_what_has_no_known_rows_is_named(batch, message):
    with pytest.raises(DataError) as failure:
        take_rows(batch, Share(0, 2))
    assert message in failure.value.message
    assert failure.value.hint
