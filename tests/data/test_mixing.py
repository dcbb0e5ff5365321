"""The plan of a mixed epoch: how many batches each task gives, and in which order."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from plugin_trainer.data.mixing import Mixing, warnings_of


def order(mixing: Mixing, lengths: list[int], *, seed: int = 0, epoch: int = 0) -> list[int]:
    return mixing.order(mixing.quotas(lengths), seed=seed, epoch=epoch).tolist()


def test_a_round_robin_gives_one_batch_of_each_task_and_drops_those_that_are_through():
    assert order(Mixing(), [4, 1, 2]) == [0, 1, 2, 0, 2, 0, 0]


@pytest.mark.parametrize("quotas", [[4, 1, 2], [3, 3], [1], [5, 0, 2, 5, 1], list(range(1, 40))])
def test_a_round_robin_goes_through_its_rounds_in_two_bytes_a_batch(quotas):
    rounds = [
        task for number in range(max(quotas)) for task, quota in enumerate(quotas) if quota > number
    ]
    planned = Mixing().order(quotas, seed=0, epoch=0)
    assert planned.tolist() == rounds
    assert planned.dtype == torch.int16
    drawn = Mixing(strategy="proportional").order(quotas, seed=0, epoch=0)
    assert drawn.dtype == torch.int16 and Counter(drawn.tolist()) == Counter(rounds)


def test_a_limited_epoch_is_shared_out_as_the_beginning_of_a_whole_one():
    assert Mixing().limited([10, 1, 10], 5) == [2, 1, 2]
    assert Mixing().limited([10, 1, 10], 2) == [1, 1, 0]
    assert Mixing(strategy="proportional").limited([90, 10], 20) == [18, 2]
    assert Mixing(strategy="proportional").limited([90, 10, 1], 2) == [2, 0, 0]


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


def test_what_gives_a_starved_task_more_depends_on_the_strategy():
    shares = {"a": 990, "b": 10}
    (line,) = warnings_of(shares, Mixing(strategy="temperature", temperature=1.5))
    assert line.endswith("a higher [mixture] temperature gives it more")
    (line,) = warnings_of(shares, Mixing(strategy="proportional"))
    assert line.endswith('[mixture] strategy = "temperature" gives it more')


def test_many_starved_tasks_are_one_line():
    shares = {f"t{number}": 1 for number in range(999)} | {"large": 100_000}
    (line,) = warnings_of(shares, Mixing(strategy="proportional"))
    assert line.startswith("999 of 1000 tasks are starved") and len(line) < 300
    assert "'t0', 't1', 't2' and 996 more" in line


def test_a_setting_that_the_strategy_does_not_look_at_is_said():
    (line,) = warnings_of({"a": 1}, Mixing(temperature=3.0))
    assert line == '[mixture] temperature = 3 changes nothing: the strategy is "round_robin"'
    (line,) = warnings_of({"a": 1}, Mixing(strategy="proportional", until="first"))
    assert line == '[mixture] until = "first" changes nothing: the strategy is "proportional"'
    assert warnings_of({"a": 1}, Mixing(strategy="temperature", temperature=3.0)) == []
    assert warnings_of({"a": 1}, Mixing(until="first")) == []


def test_a_round_robin_in_which_the_largest_task_ends_alone_is_pointed_out():
    (line,) = warnings_of({"a": 10, "b": 40}, Mixing())
    assert line.startswith("task 'b' ends every epoch alone, for its last 30 of 50 batches")
    assert warnings_of({"a": 30, "b": 40}, Mixing()) == []
    assert warnings_of({"a": 10}, Mixing()) == []
