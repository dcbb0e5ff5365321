"""The data module: what it tells of an environment, its episodes to score, and predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plugin_trainer.data.stream import training_stream
from plugin_trainer.errors import DataError, PtrainError

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("environment", "shape", "dtype"),
    [
        ("CartPole-v1", (4,), torch.float32),
        ("FrozenLake-v1", (16,), torch.float32),  # a number from 0 to 15, as zeros and a one
        ("worlds:Parts", (6,), torch.float32),
        ("worlds:Picture", (1, 5), torch.uint8),
        ("worlds:From5", (5,), torch.float32),
    ],
)
def test_observations_of_many_kinds_become_tensors(
    make_data: Make, environment: str, shape: Any, dtype: Any
) -> None:
    data = make_data(environment=environment, max_episode_steps=0)
    assert data.observation_shape == shape
    batch = next(iter(data.validation()))
    assert batch["observation"].shape == (3, *shape)
    assert batch["observation"].dtype == dtype
    data.begin(seed=0)
    assert data.experience.replay.state_dict()["observation"].dtype == dtype


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": "CartPole-v7"}, "CartPole-v7 cannot be made"),
        ({"environment": "no_such_module:Thing"}, "No module named 'no_such_module'"),
        ({"environment": "worlds:Missing-v0"}, "worlds:Missing-v0 cannot be made"),
        ({"environment": "worlds:NotOne"}, "is a NotOne"),
        ({"options": {"storm": 1}}, "storm"),
        ({"environment": "worlds:Continuous"}, "use an environment with Discrete actions"),
        ({"environment": "Pendulum-v1"}, "use an environment with Discrete actions"),
        ({"environment": "worlds:History"}, "have no fixed number of values"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_with_what_to_do(
    make_data: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        make_data(**settings)
    assert message in str(caught.value)


def test_the_engine_draws_the_batches_and_finds_the_same_ones_anywhere(make_data: Make) -> None:
    def draws(*, epoch: int, batch: int) -> list[int]:
        stream = training_stream(make_data(batches_per_epoch=5).train(), seed=3)
        assert stream.inexact_because == ""
        assert stream.steps_per_epoch == 5
        window = next(stream.windows(epoch=epoch, batch=batch))
        return window.micro_batches[0]["draws"].tolist()

    assert len(draws(epoch=0, batch=0)) == 8
    assert draws(epoch=1, batch=2) == draws(epoch=1, batch=2)
    assert draws(epoch=1, batch=2) != draws(epoch=0, batch=2)


# ------------------------------------------------------------------------------------ evaluation


def evaluated(data: Any, act: Callable[[torch.Tensor], torch.Tensor]) -> list[int]:
    """Live through the episodes of an evaluation; how many were going on in each batch."""
    going_on = []
    for batch in data.validation():
        going_on.append(len(batch["observation"]))
        data.episodes.act(act(batch["observation"]))
    return going_on


def right(observation_BP: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[0.0, 1.0]]).repeat(len(observation_BP), 1)


def figures(data: Any) -> dict[str, float]:
    scores = {}
    for name, fed in data.metrics().items():
        fed.metric.update(*fed.feed({}, None))
        scores[name] = float(fed.metric.compute())
    return scores


def test_an_evaluation_lives_every_episode_to_its_end(make_data: Make) -> None:
    data = make_data(evaluation_episodes=6, options={"wind": 0.3})
    going_on = evaluated(data, right)
    assert going_on[0] == 6
    assert going_on == sorted(going_on, reverse=True)
    lengths = data.episodes.figures("length")
    assert int(lengths.max()) == len(going_on)
    assert int(lengths.sum()) == sum(going_on)
    scores = figures(data)
    rewards = data.episodes.figures("reward")
    assert scores["episode_reward"] == pytest.approx(rewards.mean())
    assert scores["least_episode_reward"] == pytest.approx(rewards.min())
    assert scores["episode_length"] == pytest.approx(lengths.mean())


def test_the_same_stream_gives_the_same_episodes(make_data: Make) -> None:
    data = make_data(options={"wind": 0.3})

    def scores(seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        evaluated(data, right)
        return figures(data)

    assert scores(1) == scores(1)
    assert any(scores(1) != scores(seed) for seed in range(2, 6))


def test_an_evaluation_cut_short_counts_what_there_was(make_data: Make) -> None:
    data = make_data(options={"wind": 1.0})  # nobody ever arrives
    batches = iter(data.validation())
    next(batches)
    data.episodes.act(torch.zeros(3, 2))
    assert figures(data) == pytest.approx(
        {"episode_reward": -0.1, "least_episode_reward": -0.1, "episode_length": 1.0}
    )


def test_episodes_in_which_nobody_acts_are_an_error_and_not_endless(make_data: Make) -> None:
    batches = iter(make_data().validation())
    next(batches)
    with pytest.raises(PtrainError, match="nobody acts"):
        next(batches)


def test_no_episodes_is_no_split(make_data: Make) -> None:
    data = make_data(evaluation_episodes=0, test_episodes=0)
    assert data.validation() is None
    assert data.test() is None


# ------------------------------------------------------------------------------------ prediction


def test_a_line_is_an_observation_and_the_answer_an_action_with_its_values(
    make_data: Make,
) -> None:
    data = make_data(environment="worlds:From5")
    (batch,) = data.predict(["[0, 0, 1, 0, 0]", "[1, 0, 0, 0, 0]"])
    assert batch["observation"].tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    q_BA = torch.tensor([[0.5, 1.5], [2.0, -1.0]])
    assert data.decode({"q": q_BA}, batch) == [
        {"action": 6, "q": [0.5, 1.5]},
        {"action": 5, "q": [2.0, -1.0]},
    ]


def test_observations_that_are_no_arrays_are_read_too(make_data: Make) -> None:
    (batch,) = make_data(environment="FrozenLake-v1").predict(["3"])
    assert batch["observation"].argmax(1).tolist() == [3]
    (batch,) = make_data(environment="worlds:Parts").predict(['{"place": 2, "end": [4]}'])
    assert batch["observation"].tolist() == [[4, 0, 0, 1, 0, 0]]


def test_every_line_that_is_no_observation_is_named(make_data: Make) -> None:
    lines = ["[0, 0, 1, 0, 0]", "[0, 1]", "", '"here"', "[0, 0, 1, 0, NaN]", "[[1], [2]]"]
    with pytest.raises(DataError) as caught:
        list(make_data().predict(lines))
    text = str(caught.value)
    assert "line 2: its shape is (2,) in place of (5,)" in text
    assert "line 3: it is not JSON" in text
    assert "line 4: it is no array of numbers" in text
    assert "line 5: it has a number that is not finite" in text
    assert "line 6: its shape is (2, 1) in place of (5,)" in text
    assert "line 1" not in text


@pytest.mark.parametrize(
    ("environment", "line", "message"),
    [
        ("FrozenLake-v1", "16", "16 is none of Discrete"),
        ("worlds:Parts", '{"place": 2}', "its keys are place in place of end, place"),
        ("worlds:Parts", '{"place": 7, "end": [4]}', "7 is none of Discrete"),
        ("worlds:Parts", "[1]", "is none of Dict"),
        ("worlds:Picture", "[[0, 0, 256, 0, 0]]", "its numbers are not all from 0 to 255"),
    ],
)
def test_what_is_out_of_a_space_is_named(
    make_data: Make, environment: str, line: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        list(make_data(environment=environment).predict([line]))
    assert message in str(caught.value)


def test_many_wrong_lines_are_counted(make_data: Make) -> None:
    with pytest.raises(DataError, match="and 4 lines more"):
        list(make_data().predict(["x"] * 9))
