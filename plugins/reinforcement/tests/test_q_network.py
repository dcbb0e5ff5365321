"""What a Q-network learns from a transition, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ptrain_reinforcement.networks import Perceptron
from ptrain_reinforcement.q_network import QNetwork
from ptrain_reinforcement.settings import QNetworkSettings
from torch import nn

from plugin_trainer.errors import PtrainError

SPACE = SimpleNamespace(observation_shape=(2,), num_actions=2)


class Table(nn.Module):
    """Q(s, a) = the entry of s at a, and s is its own Q values: Q([1, 2]) = [1, 2] + bias."""

    def __init__(self, shape: tuple[int, ...], num_actions: int) -> None:
        super().__init__()
        assert shape == (2,)
        self.bias = nn.Parameter(torch.zeros(num_actions))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + self.bias


class Normed(nn.Module):
    """A network with running statistics and a counter."""

    def __init__(self, shape: tuple[int, ...], num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*shape, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layers(observation)


class TooWide(nn.Linear):
    """Gives three values where there are two actions."""

    def __init__(self, shape: tuple[int, ...], num_actions: int) -> None:
        super().__init__(*shape, num_actions + 1)


def not_a_network(shape: tuple[int, ...], num_actions: int) -> int:
    return 3


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "own_networks", sys.modules[__name__])


def table(**settings: Any) -> QNetwork:
    """A model whose network gives s + [0, 0], and whose target gives s + [5, 0]."""
    model = QNetwork(QNetworkSettings(network="own_networks:Table", **settings), SPACE)
    model.target.bias.data = torch.tensor([5.0, 0.0])
    return model


def transition(**changes: Any) -> dict[str, Any]:
    """From [3, 4] by action 1 to [1, 2], with reward 10."""
    return {
        "observation": torch.tensor([[3.0, 4.0]]),
        "action": torch.tensor([1]),
        "reward": torch.tensor([10.0]),
        "next_observation": torch.tensor([[1.0, 2.0]]),
        "terminated": torch.tensor([False]),
    } | changes


@pytest.mark.parametrize(
    ("settings", "y"),
    [
        # The network likes action 1 best at [1, 2]; the target values it at 2, and action 0 at 6.
        ({"double": True, "discount": 0.5}, 10 + 0.5 * 2),
        ({"double": False, "discount": 0.5}, 10 + 0.5 * 6),
        ({"double": False, "discount": 0.0}, 10.0),
    ],
)
def test_the_goal_is_the_reward_and_the_discounted_value_of_what_comes_next(
    settings: dict[str, Any], y: float
) -> None:
    outputs = table(loss="mse", **settings)(**transition())
    assert outputs["loss"].item() == pytest.approx((y - 4) ** 2)
    assert outputs["metrics"]["q"].item() == 4
    huber = table(loss="huber", **settings)(**transition())
    assert huber["loss"].item() == pytest.approx(abs(y - 4) - 0.5)


def test_nothing_comes_after_the_end() -> None:
    outputs = table(loss="mse")(**transition(terminated=torch.tensor([True])))
    assert outputs["loss"].item() == (10 - 4) ** 2


def test_the_loss_is_a_mean_and_moves_the_taken_action_of_the_network_alone() -> None:
    model = table(loss="mse", discount=0.0)
    both = {
        name: torch.cat([value, value]) if name != "reward" else torch.tensor([10.0, 4.0])
        for name, value in transition().items()
    }
    loss = model(**both)["loss"]
    assert loss.item() == pytest.approx(36 / 2)
    loss.backward()
    assert model.network.bias.grad.tolist() == [0.0, -6.0]
    assert model.target.bias.grad is None


def test_observations_alone_have_q_values_and_no_loss() -> None:
    outputs = table()(torch.tensor([[3.0, 4.0]]))
    assert outputs["q"].tolist() == [[3.0, 4.0]]
    assert outputs["count"] == 0


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_target_goes_a_share_of_the_way_when_its_turn_is(rate: float) -> None:
    model = table(target_rate=rate, target_every_steps=3)
    model.network.bias.data = torch.tensor([1.0, 2.0])
    model.follow(step=1)
    model.follow(step=2)
    assert model.target.bias.tolist() == [5.0, 0.0]
    model.follow(step=3)
    expected = [5 + rate * (1 - 5), 0 + rate * 2]
    assert model.target.bias.tolist() == pytest.approx(expected)
    assert model.network.bias.tolist() == [1.0, 2.0]


def test_running_statistics_follow_too_and_the_target_never_trains() -> None:
    model = QNetwork(QNetworkSettings(network="own_networks:Normed", target_rate=1.0), SPACE)
    model.train()
    assert model.network.training
    assert not model.target.training
    before = model.target.layers[1].running_mean.clone()
    model(**transition(**{name: value.repeat(4, 1) for name, value in rows().items()}, **fours()))
    assert torch.equal(model.target.layers[1].running_mean, before)
    model.follow(step=1)
    for (name, mine), theirs in zip(
        model.target.state_dict().items(), model.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert model.target.layers[1].num_batches_tracked > 0


def rows() -> dict[str, torch.Tensor]:
    return {name: transition()[name] for name in ("observation", "next_observation")}


def fours() -> dict[str, torch.Tensor]:
    return {name: transition()[name].repeat(4) for name in ("action", "reward", "terminated")}


def test_only_the_network_can_be_trained() -> None:
    model = QNetwork(QNetworkSettings(), SPACE)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"network.{name}" for name, _ in model.network.named_parameters()}


def test_the_advantages_of_a_dueling_perceptron_do_not_move_the_value() -> None:
    network = Perceptron((2, 3), 4, hidden_sizes=(8, 8), dueling=True)
    observations = torch.randn(5, 2, 3)
    q_BA = network(observations)
    value_B1 = network.value(network.trunk(observations))
    assert q_BA.shape == (5, 4)
    assert torch.allclose(q_BA.mean(1, keepdim=True), value_B1, atol=1e-6)


def test_a_perceptron_without_hidden_layers_or_dueling_is_linear() -> None:
    network = Perceptron((3,), 2, hidden_sizes=(), dueling=False)
    assert sum(p.numel() for p in network.parameters()) == 3 * 2 + 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_networks:TooWide", "one Q value an action"),
        ("own_networks:not_a_network", "gave a int"),
        ("own_networks:Missing", "no 'Missing'"),
        ("torch.nn:Bilinear", "cannot be made for observations of shape"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_at_once(target: str, message: str) -> None:
    with pytest.raises(PtrainError) as caught:
        QNetwork(QNetworkSettings(network=target), SPACE)
    assert message in str(caught.value)
