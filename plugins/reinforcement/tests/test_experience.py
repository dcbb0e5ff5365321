"""How the agent lives: what it does at random, what it remembers, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ptrain_reinforcement.actor import Actor
from ptrain_reinforcement.experience import acting
from ptrain_reinforcement.replay import DRAW_BITS
from torch import nn

Make = Callable[..., Any]


class Always(nn.Module):
    """Likes one action best, wherever it is."""

    def __init__(self, action: int) -> None:
        super().__init__()
        self.register_buffer("q_A", torch.eye(2)[action])

    def forward(self, observation: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"q": self.q_A.expand(len(observation), 2)}


def remembered(data: Any) -> dict[str, torch.Tensor]:
    """Every transition in the buffer, once, in its order."""
    replay = data.experience.replay
    size = replay.size
    places = torch.arange(size)
    drawn = replay.drawn((places * (1 << DRAW_BITS) + (1 << DRAW_BITS) // 2) // size)
    assert len(drawn["action"]) == size
    return drawn


def test_the_first_acts_are_random_and_then_each_step_has_its_share(
    make_data: Make, make_run: Make
) -> None:
    data = make_data(copies=3, first_acts=10, acts_per_step=2, replay_capacity=1_000)
    data.begin(seed=0)
    run = make_run(Always(1))
    data.experience.grow(run)
    assert data.experience.acts == 12 + 2 * 3  # four rounds of three, and two
    data.experience.grow(run)
    assert data.experience.acts == 18 + 2 * 3


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_as_many_actions_are_random_as_epsilon_says(
    make_data: Make, make_run: Make, epsilon: float
) -> None:
    data = make_data(
        copies=4, first_acts=1, replay_capacity=4_004, epsilon_first=epsilon, epsilon_last=epsilon
    )
    data.begin(seed=0)
    for _ in range(1_000):
        data.experience.grow(make_run(Always(0)))
    share = remembered(data)["action"][4:].float().mean()
    # Half of the random ones are the other action; give or take five standard deviations.
    assert share == pytest.approx(epsilon / 2, abs=5 * (epsilon * 0.25 / 4_000) ** 0.5)


def test_epsilon_falls_in_a_line_by_the_optimizer_steps_and_stays(make_data: Make) -> None:
    data = make_data(epsilon_first=0.9, epsilon_last=0.1, epsilon_steps=80)
    data.begin(seed=0)
    of = data.experience.epsilon
    assert of(0) == 0.9
    assert of(40) == pytest.approx(0.5)
    assert [of(80), of(81), of(10_000)] == [0.1] * 3
    data = make_data(epsilon_steps=0, epsilon_last=0.2)
    data.begin(seed=0)
    assert data.experience.epsilon(0) == 0.2


def test_a_transition_is_what_happened(make_data: Make, make_run: Make) -> None:
    data = make_data(
        copies=1, first_acts=1, options={"wind": 0.0}, epsilon_first=0.0, epsilon_last=0.0,
        max_episode_steps=0,
    )  # fmt: skip
    data.begin(seed=0)
    for _ in range(30):
        data.experience.grow(make_run(Always(1)))
    seen = remembered(data)
    place, following = seen["observation"].argmax(1), seen["next_observation"].argmax(1)
    assert torch.equal(following[1:], place[1:] + 1)  # the first act was random
    assert torch.equal(seen["terminated"], following == 4)
    assert torch.equal(seen["reward"], torch.where(seen["terminated"], 1.0, -0.1))
    assert set(place.tolist()) <= {0, 1, 2, 3}  # an episode begins anew after its end


def test_an_episode_that_was_cut_off_is_not_terminated(make_data: Make, make_run: Make) -> None:
    data = make_data(copies=1, first_acts=1, max_episode_steps=4, epsilon_first=0.0,
                     epsilon_last=0.0)  # fmt: skip
    data.begin(seed=0)
    for _ in range(40):
        data.experience.grow(make_run(Always(0)))
    assert data.experience.episodes == 10
    assert not remembered(data)["terminated"].any()


def test_episodes_are_told_of_once(make_data: Make, make_run: Make) -> None:
    data = make_data(copies=1, first_acts=1, max_episode_steps=5, epsilon_first=0.0,
                     epsilon_last=0.0)  # fmt: skip
    data.begin(seed=0)
    run = make_run(Always(0))
    for _ in range(11):
        data.experience.grow(run)
    told = data.experience.told(step=11)
    assert told["train/episodes"] == 2
    assert told["train/episode_length"] == 5
    assert told["train/episode_reward"] == pytest.approx(-0.5)
    assert told["train/environment_steps"] == 12
    assert "train/episode_reward" not in data.experience.told(step=12)


def test_actions_that_begin_elsewhere_are_given_to_the_environment_as_they_are_there(
    make_data: Make, make_run: Make
) -> None:
    data = make_data(environment="worlds:From5")
    data.begin(seed=0)
    data.experience.grow(make_run(Always(1)))
    assert set(remembered(data)["action"].tolist()) <= {0, 1}


def test_seeds_decide_what_is_lived_through(make_data: Make, make_run: Make) -> None:
    def life(seed: int) -> list[Any]:
        data = make_data()
        data.begin(seed=seed)
        for _ in range(20):
            data.experience.grow(make_run(Always(0)))
        return [value.tolist() for value in remembered(data).values()]

    assert life(1) == life(1)
    assert life(1) != life(2)


@pytest.mark.parametrize("exactly", [True, False])
def test_an_episode_goes_on_from_a_state_or_the_next_one_begins(
    make_data: Make, worlds: Any, exactly: bool
) -> None:
    data = make_data()

    def actor() -> Actor:
        return Actor(worlds.Corridor(wind=0.0), data._observations, seeds=(1,))

    before, after = actor(), actor()
    before.begin()
    before.move(0)
    after.load_state_dict(before.state_dict(), exactly=exactly)
    assert (after.episode, after.length) == ((0, 1) if exactly else (1, 0))
    assert after.reward == (before.reward if exactly else 0.0)
    if exactly:
        assert after.move(1).next_observation.tolist() == before.move(1).next_observation.tolist()


def test_copies_live_lives_of_their_own(make_data: Make, make_run: Make) -> None:
    data = make_data(copies=2, first_acts=60, options={"wind": 0.5})
    data.begin(seed=0)
    data.experience.grow(make_run(Always(0)))
    seen = remembered(data)["observation"]
    assert not torch.equal(seen[0::2], seen[1::2])


def test_exploring_leaves_the_random_streams_of_the_process_alone(
    make_data: Make, make_run: Make
) -> None:
    before = torch.get_rng_state()
    data = make_data()
    data.begin(seed=0)
    data.experience.grow(make_run(Always(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_acts_in_evaluation_mode_and_trains_on_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[1].eval()
    with acting(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 2)).requires_grad
    assert [module.training for module in model] == [True, False, True]
