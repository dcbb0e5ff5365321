"""The replay buffer: the newest transitions, each drawn as often as every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ptrain_reinforcement.replay import DRAW_BITS, Replay

from plugin_trainer.errors import ResumeError


def filled(count: int, *, capacity: int) -> Replay:
    """A buffer that was given transitions number 0, 1, 2, ..."""
    replay = Replay(capacity, (2,), np.dtype(np.float32))
    for number in range(count):
        seen = np.full(2, number, np.float32)
        replay.add(
            seen,
            action=number % 3,
            reward=number / 2,
            next_observation=seen + 1,
            terminated=number % 5 == 0,
        )
    return replay


def numbers(replay: Replay, draws: int = 4096) -> list[int]:
    """Which transitions can be drawn."""
    draws_B = torch.arange(draws) * ((1 << DRAW_BITS) // draws)
    return sorted({int(row[0]) for row in replay.drawn(draws_B)["observation"]})


def test_a_transition_comes_out_as_it_went_in() -> None:
    replay = filled(1, capacity=4)
    drawn = replay.drawn(torch.tensor([0, (1 << DRAW_BITS) - 1]))
    assert drawn["observation"].tolist() == [[0.0, 0.0]] * 2
    assert drawn["next_observation"].tolist() == [[1.0, 1.0]] * 2
    assert drawn["action"].tolist() == [0, 0]
    assert drawn["reward"].tolist() == [0.0, 0.0]
    assert drawn["terminated"].tolist() == [True, True]


def test_only_what_is_there_is_drawn_and_the_oldest_makes_room() -> None:
    assert numbers(filled(3, capacity=10)) == [0, 1, 2]
    assert numbers(filled(10, capacity=10)) == list(range(10))
    assert numbers(filled(13, capacity=10)) == list(range(3, 13))
    assert filled(13, capacity=10).size == 10


def test_every_transition_is_drawn_as_often_as_every_other() -> None:
    replay = filled(7, capacity=10)
    draws_B = torch.randint(1 << DRAW_BITS, (70_000,), generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(replay.drawn(draws_B)["observation"][:, 0].long())
    assert counts.shape == (7,)
    # 10,000 each, give or take five standard deviations of 93.
    assert (counts - 10_000).abs().max() < 465


def test_what_was_drawn_does_not_change_when_the_buffer_does() -> None:
    replay = filled(1, capacity=1)
    drawn = replay.drawn(torch.zeros(1, dtype=torch.int64))
    replay.add(
        np.full(2, 9, np.float32),
        action=1,
        reward=1.0,
        next_observation=np.full(2, 9, np.float32),
        terminated=False,
    )
    assert drawn["observation"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("count", [4, 10, 13, 27])
def test_a_buffer_goes_on_from_its_state_in_the_same_places(count: int) -> None:
    before = filled(count, capacity=10)
    after = Replay(10, (2,), np.dtype(np.float32))
    after.load_state_dict(before.state_dict())
    for replay in (before, after):
        add_one(replay, 99)
    draws_B = torch.arange(100) * ((1 << DRAW_BITS) // 100)
    for name, tensor in before.drawn(draws_B).items():
        assert torch.equal(tensor, after.drawn(draws_B)[name]), name


def add_one(replay: Replay, number: int) -> None:
    seen = np.full(2, number, np.float32)
    replay.add(seen, action=0, reward=0.0, next_observation=seen, terminated=False)


@pytest.mark.parametrize(("capacity", "kept"), [(4, [9, 10, 11, 12]), (20, list(range(3, 13)))])
def test_a_buffer_of_another_size_takes_over_the_newest(capacity: int, kept: list[int]) -> None:
    other = Replay(capacity, (2,), np.dtype(np.float32))
    other.load_state_dict(filled(13, capacity=10).state_dict())
    assert numbers(other) == kept
    add_one(other, 50)
    assert 50 in numbers(other)
    assert (kept[0] in numbers(other)) == (capacity == 20)


@pytest.mark.parametrize(("shape", "dtype"), [((3,), np.float32), ((2,), np.uint8)])
def test_observations_of_another_shape_or_kind_are_refused(shape: Any, dtype: Any) -> None:
    other = Replay(10, shape, np.dtype(dtype))
    with pytest.raises(ResumeError, match="remembers observations of shape"):
        other.load_state_dict(filled(3, capacity=10).state_dict())


def test_a_state_holds_no_more_than_was_filled() -> None:
    state = filled(3, capacity=1_000).state_dict()
    assert state["observation"].shape == (3, 2)
