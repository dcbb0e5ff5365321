"""Every sampler of torch gives an order that is a function of seed, task and epoch alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from plugin_trainer.data.samplers import sampler_order, why_order_unknown
from plugin_trainer.data.stream import training_stream

ROWS = range(40)

SAMPLERS = {
    "plain": lambda: RandomSampler(ROWS),
    "with replacement": lambda: RandomSampler(ROWS, replacement=True),
    "of a number": lambda: RandomSampler(ROWS, num_samples=55),
    "subset": lambda: SubsetRandomSampler([*range(5, 25)]),
    "weighted": lambda: WeightedRandomSampler([float(row) for row in ROWS], 30),
    "distributed": lambda: DistributedSampler(ROWS, num_replicas=2, rank=1, seed=3),
}
RANDOM = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


class Rows(Dataset):
    """Numbers, asked for by number or by a list of them."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index):
        return torch.as_tensor(index)


def order(sampler, *, seed=0, task="", epoch=0):
    return [*map(int, sampler_order(sampler, seed=seed, task=task, epoch=epoch))]


def epochs(loader, count):
    """The batches of the first epochs, as lists."""
    stream = training_stream(loader, seed=0)
    windows = stream.windows(epoch=0, batch=0)
    return [
        [next(windows).micro_batches[0].tolist() for _ in range(stream.batches_per_epoch)]
        for _ in range(count)
    ]


@RANDOM
def test_the_order_depends_on_no_random_stream_and_moves_none(make):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order(make())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert order(make()) == first
    assert len(first) == len(make())


@RANDOM
def test_every_epoch_has_an_order_of_its_own_whatever_came_before(make):
    sampler = make()
    orders = [order(sampler, epoch=epoch) for epoch in range(3)]
    assert len({tuple(one) for one in orders}) == 3
    assert order(make(), epoch=2) == orders[2]
    assert order(sampler, epoch=0) == orders[0]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "distributed"])
def test_seed_and_task_choose_the_order(name):
    sampler = SAMPLERS[name]()
    assert len({tuple(order(sampler, seed=s, task=t)) for s in (0, 1) for t in ("", "a")}) == 4


def test_a_plain_sampler_has_the_order_that_checkpoints_count_in():
    # Changing it would break every run in progress.
    expected = [1, 7, 8, 4, 5, 3, 6, 9, 0, 2]
    assert order(RandomSampler(range(10)), seed=3, task="a", epoch=2) == expected


def test_a_samplers_own_generator_is_put_back_unmoved():
    own = torch.Generator().manual_seed(9)
    sampler = WeightedRandomSampler([1.0] * 10, 10, generator=own)
    before = own.get_state()
    order(sampler)
    assert sampler.generator is own and torch.equal(own.get_state(), before)


def test_weights_choose_and_a_subset_stays_one():
    weighted = WeightedRandomSampler([0.0] * 20 + [1.0] * 20, 200)
    assert set(order(weighted)) == set(range(20, 40))
    assert sorted(order(SubsetRandomSampler([3, 1, 4]))) == [1, 3, 4]
    assert sorted(order(RandomSampler(ROWS, num_samples=80))) == sorted([*ROWS] * 2)


def test_a_subset_gives_its_own_objects():
    names = ["a", "b", "c"]
    given = sampler_order(SubsetRandomSampler(names), seed=0, task="", epoch=0)
    assert sorted(given) == names


def test_the_ranks_of_a_distributed_sampler_share_an_epoch_in_its_own_order():
    def rank(number, epoch):
        return order(DistributedSampler(ROWS, num_replicas=2, rank=number, seed=3), epoch=epoch)

    assert sorted(rank(0, 4) + rank(1, 4)) == [*ROWS]
    plain = DistributedSampler(ROWS, num_replicas=2, rank=0, seed=3)
    plain.set_epoch(4)
    assert rank(0, 4) == [*plain]


@RANDOM
def test_an_epoch_is_as_long_as_its_sampler(make):
    loader = DataLoader(Rows(), batch_size=7, sampler=make())
    stream = training_stream(loader, seed=0)
    assert stream.inexact_because == ""
    assert stream.batches_per_epoch == len(loader)
    (first,) = epochs(loader, 1)
    assert [n for batch in first for n in batch] == order(make())


@RANDOM
def test_a_batch_sampler_around_one_is_the_same_as_the_loaders_own(make):
    own = DataLoader(Rows(), batch_size=4, sampler=make(), drop_last=True)
    given = DataLoader(Rows(), batch_sampler=BatchSampler(make(), 4, True))
    assert why_order_unknown(given) == ""
    assert epochs(given, 2) == epochs(own, 2)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_without_collation_the_data_set_is_asked_for_a_whole_batch(workers):
    bulk = DataLoader(
        Rows(),
        batch_size=None,
        sampler=BatchSampler(RandomSampler(ROWS), 8, False),
        num_workers=workers,
    )
    assert epochs(bulk, 2) == epochs(DataLoader(Rows(), batch_size=8, shuffle=True), 2)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_without_batches_samples_come_one_by_one(workers):
    single = DataLoader(Rows(), batch_size=None, shuffle=True, num_workers=workers)
    ((*first,),) = epochs(single, 1)
    assert first == order(RandomSampler(ROWS))


@pytest.mark.parametrize(
    ("loader", "batches"),
    [
        (DataLoader(Rows(), batch_size=2, sampler=[5, 3, 9]), [[5, 3], [9]]),
        (DataLoader(Rows(), batch_size=2, sampler=range(3)), [[0, 1], [2]]),
        (DataLoader(Rows(), batch_sampler=[[5, 3], [9]]), [[5, 3], [9]]),
        (DataLoader(Rows(), batch_sampler=BatchSampler((5, 3, 9), 2, False)), [[5, 3], [9]]),
    ],
)
def test_a_list_of_indices_is_an_order(loader, batches):
    assert why_order_unknown(loader) == ""
    assert epochs(loader, 2) == [batches, batches]


def test_a_class_derived_from_a_known_sampler_may_do_anything():
    class Mine(RandomSampler):
        pass

    loader = DataLoader(Rows(), sampler=Mine(ROWS))
    assert why_order_unknown(loader) == "the training loader has a sampler of its own (Mine)"


def test_a_sampler_of_another_length_than_the_data_set_decides():
    loader = DataLoader(Rows(), batch_size=5, sampler=RandomSampler(range(10)))
    assert sorted(n for batch in epochs(loader, 1)[0] for n in batch) == [*range(10)]


def test_the_epoch_is_told_to_a_sampler_of_its_own():
    class Shifting(SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(row + self.epoch) % 4 for row in range(4)])

    loader = DataLoader(Rows(), batch_size=4, sampler=Shifting(range(4)))
    assert epochs(loader, 2) == [[[0, 1, 2, 3]], [[1, 2, 3, 0]]]
    assert "Shifting" in training_stream(loader, seed=0).inexact_because
