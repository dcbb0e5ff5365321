"""The order of samples is a function of seed, task, epoch and position, and of nothing else."""

from __future__ import annotations

import random

import torch

from plugin_trainer.data.order import EpochBatches, SeededBatch, derive_seed, epoch_order


def order(size=50, *, seed=0, task="", epoch=0, shuffle=True):
    return epoch_order(size, seed=seed, task=task, epoch=epoch, shuffle=shuffle)


def test_an_epoch_takes_every_sample_once():
    assert sorted(order()) == list(range(50))
    assert order() != list(range(50))


def test_the_order_depends_on_no_random_stream_and_moves_none():
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = order()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    torch.manual_seed(2)
    assert order() == first


def test_another_seed_task_or_epoch_gives_another_order():
    orders = [order(), order(seed=1), order(task="b"), order(epoch=1), order(seed=1, epoch=1)]
    assert len({tuple(one) for one in orders}) == len(orders)


def test_the_order_is_the_same_in_every_version():
    # A checkpoint is a cursor into this order: changing it would break every run in progress.
    assert order(10, seed=3, task="a", epoch=2) == [1, 7, 8, 4, 5, 3, 6, 9, 0, 2]
    assert derive_seed(1, "a", 2) == 7966048045017696035


def test_without_shuffling_the_order_is_that_of_the_data():
    assert order(5, shuffle=False) == [0, 1, 2, 3, 4]


def test_seeds_of_different_parts_are_unrelated_and_fit_a_generator():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (12,), (2, 1), ("1", 2), (1, "2"), ()]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def batches(**given):
    options = {"size": 10, "batch_size": 4, "shuffle": True, "drop_last": False, "seed": 0}
    return EpochBatches(**{**options, **given})


def test_a_short_last_batch_is_kept_or_dropped():
    assert [len(batch) for batch in batches()] == [4, 4, 2]
    assert batches().per_epoch == 3
    assert [len(batch) for batch in batches(drop_last=True)] == [4, 4]
    assert batches(drop_last=True).per_epoch == 2
    assert batches(size=3, drop_last=True).per_epoch == 0


def test_starting_at_a_cursor_gives_the_rest_of_the_epoch():
    whole = list(batches(epoch=3))
    assert list(batches(epoch=3, start=2)) == whole[2:]
    assert len(batches(start=2)) == 1
    assert list(batches(start=3)) == []


def test_a_batchs_seed_is_its_own_wherever_it_is_loaded():
    whole = list(batches(with_seeds=True))
    assert all(isinstance(batch, SeededBatch) for batch in whole)
    assert len({batch.seed for batch in whole}) == 3
    assert list(batches(with_seeds=True, start=1)) == whole[1:]
    assert next(iter(batches(with_seeds=True, epoch=1))).seed != whole[0].seed
