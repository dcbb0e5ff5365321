"""A digest tells whether two processes have loaded the same rows."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

from plugin_trainer.data.digest import digest_of
from plugin_trainer.data.rows import Part
from plugin_trainer.data.share import Share
from plugin_trainer.data.stream import training_stream

Pair = namedtuple("Pair", "inputs labels")


def batch(**changed):
    return {
        "inputs": torch.tensor([[0.5, 1.5], [2.5, 3.5]]),
        "labels": torch.tensor([1, 0]),
        "texts": ["ab", "c"],
        "ids": np.array([3, 4]),
        "weight": 0.5,
        **changed,
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": torch.tensor([1, 1])},
        {"labels": torch.tensor([1, 0], dtype=torch.int32)},
        {"texts": ["a", "bc"]},
        {"ids": np.array([3, 5])},
        {"inputs": torch.zeros(2, 3)},
        {"more": 1},
    ],
)
def test_other_rows_have_another_digest(changed):
    assert digest_of(batch()) == digest_of(batch())
    assert digest_of(batch(**changed)) != digest_of(batch())


@pytest.mark.parametrize(
    "altered",
    [
        {"inputs": torch.zeros(2, 2)},
        {"weight": 0.7},
        {"weight": np.float32(0.7)},
        {"pixels": torch.ones(2, 3, 4, dtype=torch.uint8)},
        {"pixels": np.ones((2, 3, 4), np.uint8)},
        {"points": [0.5, 0.25]},
    ],
)
def test_what_an_augmentation_alters_does_not_count_where_labels_tell(altered):
    name, value = next(iter(altered.items()))
    other = value * 0 if not isinstance(value, list) else [0.0, 0.0]
    assert digest_of(batch(**altered)) == digest_of(batch(**{name: other}))


@pytest.mark.parametrize(
    "silent",
    [
        {"mask": torch.ones(2, 3, dtype=torch.bool)},
        {"labels": torch.zeros(2, dtype=torch.long)},
        {"labels": [1, 1]},
        {"names": ["a", "a"]},
        {"ids": np.zeros(2, int)},
        {"length": 2},
        {},
    ],
)
@pytest.mark.parametrize("kind", [dict, lambda its: {"inner": its}, lambda its: list(its.values())])
def test_fractions_count_where_nothing_else_tells_rows_apart(silent, kind):
    ones, others = kind({"x": torch.ones(2), **silent}), kind({"x": torch.zeros(2), **silent})
    assert digest_of(ones) == digest_of(kind({"x": torch.ones(2), **silent})) != digest_of(others)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), [0, 1], ["a", "b"], np.arange(2)])
def test_labels_of_any_kind_tell_rows_apart(labels):
    one, other = ({"x": torch.randn(2), "labels": labels} for _ in range(2))
    assert digest_of(one) == digest_of(other)


def test_the_order_of_the_keys_does_not_count():
    """A collate that goes through a set has another one in each process."""
    assert digest_of({"a": torch.ones(2), "b": [1, 2]}) == digest_of(
        {"b": [1, 2], "a": torch.ones(2)}
    )
    assert digest_of(Pair([1, 2], [3, 4])) != digest_of(Pair([3, 4], [1, 2]))


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.arange(6).reshape(2, 3).t(),
        lambda: torch.tensor(3),
        lambda: torch.tensor([]),
        lambda: torch.tensor([True]),
        lambda: torch.tensor([1j]),
        lambda: np.array([object()]),
        lambda: np.array([(1, "a")], dtype=[("number", int), ("object", object)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: object(),
        lambda: None,
    ],
)
def test_anything_has_a_digest(odd):
    assert digest_of({"odd": odd()}) == digest_of({"odd": odd()})


class Numbers:
    """An iterable of three batches that shares nothing out."""

    def __iter__(self):
        return iter([{"x": torch.arange(4) + 4 * number} for number in range(3)])


@pytest.mark.parametrize("start", [0, 1])
def test_the_first_batch_that_is_trained_on_is_digested_and_no_other(start):
    streams = [training_stream(Numbers(), seed=1, share=Share(rank, 2)) for rank in range(2)]
    windows = [stream.windows(epoch=0, batch=start) for stream in streams]
    for position in range(start, 7):
        one, other = (next(its).digest for its in windows)
        whole = {"x": torch.arange(4) + 4 * (position % 3)}
        assert one == other == (digest_of(whole) if position == start else "")


class Ends(Numbers):
    """Its second pass is longer than its first."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([{"x": torch.arange(4)}] * self.passes)


def test_an_epoch_that_ends_before_the_place_to_go_on_at_leaves_it_to_the_next():
    windows = training_stream(Ends(), seed=1, share=Share(0, 2)).windows(epoch=0, batch=1)
    assert [bool(next(windows).digest) for _ in range(3)] == [True, False, False]


def test_a_mixture_has_one_of_each_task():
    stream = training_stream({"a": Numbers(), "b": Numbers()}, seed=1, share=Share(1, 2))
    windows = stream.windows(epoch=0, batch=0)
    assert [bool(next(windows).digest) for _ in range(5)] == [True, True, False, False, False]


def test_alone_nothing_is_digested():
    window = next(training_stream(Numbers(), seed=1).windows(epoch=0, batch=0))
    assert not window.digest and not isinstance(window.micro_batches[0], Part)
