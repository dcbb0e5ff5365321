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


def test_what_an_augmentation_alters_does_not_count():
    assert digest_of(batch(inputs=torch.randn(2, 2), weight=0.7)) == digest_of(batch())


@pytest.mark.parametrize("kind", [list, tuple, lambda its: Pair(*its), lambda its: {"a": its}])
def test_where_there_are_fractions_only_they_count(kind):
    ones, others = [torch.ones(2), torch.ones(2)], [torch.ones(2), torch.zeros(2)]
    assert digest_of(kind(ones)) == digest_of(kind(ones)) != digest_of(kind(others))


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.arange(6).reshape(2, 3).t(),
        torch.tensor(3),
        torch.tensor([]),
        torch.tensor([True]),
        torch.tensor([1j]),
        np.array([object()]),
        object(),
        None,
    ],
)
def test_anything_has_a_digest(odd):
    assert digest_of({"odd": odd}) == digest_of({"odd": odd})


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


def test_a_mixture_has_one_of_each_task():
    stream = training_stream({"a": Numbers(), "b": Numbers()}, seed=1, share=Share(1, 2))
    windows = stream.windows(epoch=0, batch=0)
    assert [bool(next(windows).digest) for _ in range(5)] == [True, True, False, False, False]


def test_alone_nothing_is_digested():
    window = next(training_stream(Numbers(), seed=1).windows(epoch=0, batch=0))
    assert not window.digest and not isinstance(window.micro_batches[0], Part)
