"""The model: a network of Q values, the target network that follows it, and what they learn."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plugin_trainer.ops import ema_update_
from ptrain_reinforcement.networks import Perceptron, network_of_ones_own
from ptrain_reinforcement.settings import QNetworkSettings

# B transitions, A actions

_LOSSES = {"huber": F.smooth_l1_loss, "mse": F.mse_loss}


class Acted(Protocol):
    """What the model asks of its data module."""

    observation_shape: tuple[int, ...]
    num_actions: int


class QNetwork(nn.Module):  # type: ignore[misc]
    """Deep Q-learning (Mnih et al., Human-level control through deep reinforcement learning, 2015).

    For a transition from s by action a to s', with reward r and target network Q':

        y = r + discount * Q'(s', argmax_a' Q(s', a'))      double (van Hasselt et al., 2016)
        y = r + discount * max_a' Q'(s', a')                without
        y = r                                               where nothing comes after s'
        loss = mean over the batch of L(Q(s, a) - y)

    The target network is part of the model's state, and so of every checkpoint.
    """

    def __init__(self, settings: QNetworkSettings, data: Acted) -> None:
        super().__init__()
        self.settings = settings
        if settings.network:
            self.network = network_of_ones_own(
                settings.network, data.observation_shape, data.num_actions
            )
        else:
            self.network = Perceptron(
                data.observation_shape,
                data.num_actions,
                hidden_sizes=settings.hidden_sizes,
                dueling=settings.dueling,
            )
        self.target = copy.deepcopy(self.network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> QNetwork:
        """As every module's; the target network never trains."""
        super().train(mode)
        self.target.eval()
        return self

    def forward(
        self,
        observation: Tensor,
        action: Tensor | None = None,
        reward: Tensor | None = None,
        next_observation: Tensor | None = None,
        terminated: Tensor | None = None,
    ) -> dict[str, Any]:
        """Q values [B, A] of observations [B, ...], and the loss of transitions [B] from them."""
        q_BA: Tensor = self.network(observation)
        if action is None or reward is None or next_observation is None or terminated is None:
            return {"q": q_BA, "loss": q_BA.new_zeros(()), "count": 0}
        q_B = q_BA.gather(1, action[:, None]).squeeze(1)
        with torch.no_grad():
            next_B = self._value_of(next_observation)
            y_B = reward + self.settings.discount * next_B * ~terminated
        loss = _LOSSES[self.settings.loss](q_B.float(), y_B.float())
        return {"q": q_BA, "loss": loss, "metrics": {"q": q_B.detach().mean()}}

    def _value_of(self, observation: Tensor) -> Tensor:
        """The value [B] of being where these observations [B, ...] are made."""
        q_BA: Tensor = self.target(observation)
        if not self.settings.double:
            return q_BA.amax(1)
        best_B1 = self.network(observation).argmax(1, keepdim=True)
        return q_BA.gather(1, best_B1).squeeze(1)

    def follow(self, *, step: int) -> None:
        """Let the target network follow, if its turn is after so many optimizer steps."""
        if step % self.settings.target_every_steps:
            return
        ema_update_(
            _tensors_of(self.target),
            _tensors_of(self.network),
            decay=1 - self.settings.target_rate,
        )


def _tensors_of(network: nn.Module) -> list[Tensor]:
    """Weights and running statistics, which are averaged, and counters, which are copied."""
    return [*network.parameters(), *network.buffers()]
