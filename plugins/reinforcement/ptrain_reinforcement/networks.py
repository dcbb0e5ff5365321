"""The networks that a Q-network is made of: a perceptron, or one of the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.blame import hint_for
from plugin_trainer.registry.building import import_target

# B observations, A actions, H width of the last hidden layer


class Perceptron(nn.Module):  # type: ignore[misc]
    """Q values of observations by hidden layers with ReLU.

    dueling  Q(s, a) = V(s) + D(s, a) - mean_a D(s, a) (Wang et al., Dueling Network Architectures
             for Deep Reinforcement Learning, 2016)
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        *,
        hidden_sizes: Sequence[int],
        dueling: bool,
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), *_layers(observation_shape, hidden_sizes))
        width = hidden_sizes[-1] if hidden_sizes else math.prod(observation_shape)
        self.advantage = nn.Linear(width, num_actions)
        self.value = nn.Linear(width, 1) if dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """[B, ...] -> [B, A]."""
        hidden_BH = self.trunk(observation.float())
        advantage_BA: Tensor = self.advantage(hidden_BH)
        if self.value is None:
            return advantage_BA
        value_B1: Tensor = self.value(hidden_BH)
        return value_B1 + advantage_BA - advantage_BA.mean(-1, keepdim=True)


def _layers(observation_shape: Sequence[int], hidden_sizes: Sequence[int]) -> Iterator[nn.Module]:
    before = math.prod(observation_shape)
    for width in hidden_sizes:
        yield nn.Linear(before, width)
        yield nn.ReLU()
        before = width


def network_of_ones_own(
    target: str, observation_shape: Sequence[int], num_actions: int
) -> nn.Module:
    """The network that package.module:Class names, put to the test with two observations.

    Raises PtrainError if it is no module or its answer is not one Q value an action.
    """
    what = f"model_settings.network: {target}"
    try:
        network = import_target(target)(tuple(observation_shape), num_actions)
    except PtrainError:
        raise
    except Exception as error:
        raise PtrainError(
            f"{what} cannot be made for observations of shape {tuple(observation_shape)} and "
            f"{num_actions} actions",
            hint=hint_for(error, target=target),
        ) from error
    if not isinstance(network, nn.Module):
        raise PtrainError(f"{what} gave a {type(network).__name__}", hint="return an nn.Module")
    network.eval()
    try:
        with torch.no_grad():
            q_BA = network(torch.zeros(2, *observation_shape))
    except Exception as error:
        raise PtrainError(
            f"{what} failed on two observations of shape {tuple(observation_shape)}",
            hint=hint_for(error, target=target),
        ) from error
    network.train()
    if not isinstance(q_BA, Tensor) or tuple(q_BA.shape) != (2, num_actions):
        found = tuple(q_BA.shape) if isinstance(q_BA, Tensor) else type(q_BA).__name__
        raise PtrainError(
            f"{what} gave {found} for two observations",
            hint=f"its forward gives one Q value an action: {(2, num_actions)}",
        )
    return network
