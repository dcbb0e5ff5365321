"""An evaluation in several processes: each batch whole to one of them, and none without one."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.share import Share, StandIn
from plugin_trainer.data.workers import end_kept_workers
from plugin_trainer.errors import DataError


class Numbers(Dataset):
    """Numbers, and a record of which of them were loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.tensor(index)


class Streamed(IterableDataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


LOADERS = {
    "data set": lambda size: Numbers(size),
    "loader": lambda size: DataLoader(Numbers(size), batch_size=4),
    "whole batches": lambda size: DataLoader(Numbers(size), batch_size=4, drop_last=True),
    "range": lambda size: DataLoader(Numbers(size), batch_size=4, sampler=range(size - 1, -1, -1)),
    "asked once": lambda size: DataLoader(
        Numbers(size), sampler=BatchSampler(SequentialSampler(range(size)), 4, False),
        batch_size=None,
    ),
    "index lists": lambda size: DataLoader(
        Numbers(size), batch_sampler=[[i, 0] for i in range(size // 4)]
    ),
    "workers": lambda size: DataLoader(Numbers(size), batch_size=4, num_workers=2),
    "workers that stay": lambda size: DataLoader(
        Numbers(size), batch_size=4, num_workers=1, persistent_workers=True
    ),
    "shuffled": lambda size: DataLoader(Numbers(size), batch_size=4, shuffle=True),
    "iterable": lambda size: DataLoader(Streamed(size), batch_size=4),
    "list": lambda size: [torch.arange(i, i + 1) for i in range(size // 4)],
}  # fmt: skip

OWN_ALONE = ("data set", "loader", "whole batches", "range", "index lists")


def batches_of(loader, share: Share | None = None, *, limit: int | None = None):
    torch.manual_seed(5)
    options = {} if share is None else {"share": share}
    return [*evaluation_batches(loader, batch_size=4, limit=limit, **options)]


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "workers" not in kind])
def test_every_batch_is_one_process_s_and_all_have_equally_many(kind, size, count, limit):
    check(LOADERS[kind], size=size, rows=4 * count + 2, limit=limit)


@pytest.mark.process
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "workers" in kind])
def test_workers_load_a_share(kind):
    check(LOADERS[kind], size=2, rows=10, limit=None)


def check(make, *, size: int, rows: int, limit: int | None) -> None:
    whole = [batch.tolist() for batch in batches_of(make(rows), limit=limit)]
    shares = [batches_of(make(rows), Share(rank, size), limit=limit) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-len(whole) // size)}
    dealt = []
    for start, batches in zip(range(0, len(whole), size), zip(*shares, strict=True), strict=True):
        own = [batch for batch in batches if not isinstance(batch, StandIn)]
        assert [*batches[: len(own)]] == own
        for spare in batches[len(own) :]:
            assert spare.batch.tolist() in whole[start : start + size]
        dealt += [batch.tolist() for batch in own]
    assert dealt == whole


@pytest.mark.parametrize("kind", OWN_ALONE)
def test_where_the_order_is_known_no_others_are_loaded(kind):
    loader = LOADERS[kind](20)
    data = getattr(loader, "dataset", loader)
    own = batches_of(loader, Share(1, 2))
    assert data.loaded == torch.cat([getattr(its, "batch", its) for its in own]).tolist()
    assert 0 < len(data.loaded) < 13


def test_each_task_is_dealt_out_on_its_own():
    tasks = {"a": Named(9), "b": Named(1)}
    shares = [batches_of(tasks, Share(rank, 2)) for rank in range(2)]
    names = [[getattr(its, "batch", its)["task"] for its in share] for share in shares]
    assert names == [["a", "a", "b"], ["a", "a", "b"]]
    assert [isinstance(its, StandIn) for its in shares[0]] == [False, False, False]
    assert [isinstance(its, StandIn) for its in shares[1]] == [False, True, True]


class Named(Numbers):
    def __getitem__(self, index):
        return {"x": index}


@pytest.mark.process
def test_workers_stay_from_one_evaluation_to_the_next_and_can_be_ended():
    loader = LOADERS["workers that stay"](20)
    before = {*multiprocessing.active_children()}
    batches = batches_of(loader, Share(0, 2))
    workers = {*multiprocessing.active_children()} - before
    assert len(workers) == 1
    assert [its.tolist() for its in batches_of(loader, Share(0, 2))] == [
        its.tolist() for its in batches
    ]
    assert {*multiprocessing.active_children()} - before == workers
    end_kept_workers({"task": loader})
    assert {*multiprocessing.active_children()} == before
    assert len(batches_of(loader, Share(0, 2))) == 3
    end_kept_workers(loader)
    assert {*multiprocessing.active_children()} == before


def test_data_that_is_divided_already_is_refused():
    loader = DataLoader(Numbers(8), sampler=DistributedSampler(range(8), 2, 0))
    with pytest.raises(DataError, match=r"the evaluation \('a'\) data is divided among"):
        evaluation_batches({"a": loader}, batch_size=4, share=Share(0, 2))
    assert len(batches_of(loader)) == 4
