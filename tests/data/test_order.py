"""Batches of an epoch from a cursor on, each with a seed of its own."""

from __future__ import annotations

from array import array

import torch

from plugin_trainer.data.order import Chosen, EpochBatches, SeededBatch, derive_seed


def test_seeds_of_different_parts_are_unrelated_and_fit_a_generator():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (12,), (2, 1), ("1", 2), (1, "2"), ()]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A checkpoint is a cursor into an order that depends on it.
    assert derive_seed(1, "a", 2) == 7966048045017696035


REST = {"drop_last": False, "seed": 0}


def batches(**given):
    options = {"size": 10, "batch_size": 4, "drop_last": False, "seed": 0, **given}
    return EpochBatches(order=lambda epoch: order_of(options["size"], epoch=epoch), **options)


def order_of(size, *, epoch):
    return torch.randperm(size, generator=torch.Generator().manual_seed(epoch))


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
    assert next(iter(batches(with_seeds=True, task="other"))).seed != whole[0].seed


def test_batches_are_lists_whatever_the_order_is_kept_in():
    def first(order, batch_size):
        made = EpochBatches(order=lambda epoch: order, size=3, batch_size=batch_size, **REST)
        return next(iter(made))

    orders = [
        [4, 7, 9],
        (4, 7, 9),
        torch.tensor([4, 7, 9]),
        array("q", [4, 7, 9]),
        Chosen([9, 7, 4], torch.tensor([2, 1, 0])),
    ]
    for order in orders:
        assert first(order, 2) == [4, 7] and type(first(order, 2)) is list
        assert first(order, None) == 4 and type(first(order, None)) is int
    assert first(range(3), 2) == [0, 1]


def test_a_limit_ends_an_epoch_early():
    assert [len(batch) for batch in batches(limit=2)] == [4, 4]
    assert batches(limit=9).per_epoch == 3 and len(batches(limit=2, start=1)) == 1


def test_the_cursor_is_that_of_the_moment_of_iterating():
    sampler = batches()
    first = iter(sampler)
    sampler.epoch, sampler.start = 5, 2
    assert next(first) == next(iter(batches()))
