"""The plan of a mixed epoch: how many batches each task gives, and in which order."""

from __future__ import annotations

from collections import Counter

import pytest

from plugin_trainer.data.mixing import Mixing, warnings_of


def order(mixing: Mixing, lengths: list[int], *, seed: int = 0, epoch: int = 0) -> list[int]:
    return mixing.order(mixing.quotas(lengths), seed=seed, epoch=epoch).tolist()


def test_a_round_robin_gives_one_batch_of_each_task_and_drops_those_that_are_through():
    assert order(Mixing(), [4, 1, 2]) == [0, 1, 2, 0, 2, 0, 0]


def test_a_round_robin_may_end_with_the_first_task_that_is_through():
    assert order(Mixing(until="first"), [4, 2, 3]) == [0, 1, 2, 0, 1, 2]


def test_a_proportional_epoch_has_every_batch_once_in_an_order_of_its_own():
    mixing = Mixing(strategy="proportional")
    first, second = (order(mixing, [30, 10], epoch=epoch) for epoch in (0, 1))
    assert Counter(first) == Counter(second) == {0: 30, 1: 10}
    assert first != second
    assert first == order(mixing, [30, 10], epoch=0)
    assert first != order(mixing, [30, 10], seed=1)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1, [90, 10]), (2, [75, 25]), (1e9, [50, 50])]
)
def test_a_temperature_shares_an_epoch_out_by_a_root_of_the_sizes(temperature, expected):
    mixing = Mixing(strategy="temperature", temperature=temperature)
    assert mixing.quotas([90, 10]) == expected
    assert Counter(order(mixing, [90, 10])) == dict(enumerate(expected))


@pytest.mark.parametrize("lengths", [[7, 5, 3], [1, 1, 1000], [2, 999, 1, 34]])
@pytest.mark.parametrize("temperature", [1, 1.5, 3, 100])
def test_a_temperature_leaves_no_task_out_and_the_epoch_as_long_as_it_was(lengths, temperature):
    quotas = Mixing(strategy="temperature", temperature=temperature).quotas(lengths)
    assert min(quotas) >= 1
    assert sum(lengths) <= sum(quotas) <= sum(lengths) + len(lengths)


def test_a_task_that_hardly_ever_gets_a_batch_is_starved():
    (line,) = warnings_of({"a": 990, "b": 10}, Mixing(strategy="proportional"))
    assert line.startswith("task 'b' is starved: 10 of 1000 batches of an epoch")
    assert warnings_of({"a": 900, "b": 100}, Mixing(strategy="proportional")) == []


def test_a_round_robin_in_which_the_largest_task_ends_alone_is_pointed_out():
    (line,) = warnings_of({"a": 10, "b": 40}, Mixing())
    assert line.startswith("task 'b' ends every epoch alone, for its last 30 of 50 batches")
    assert warnings_of({"a": 30, "b": 40}, Mixing()) == []
    assert warnings_of({"a": 10}, Mixing()) == []
