"""What a user may set: one frozen dataclass per offer, every key explained in its docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class QNetworkSettings:
    """The network, what it learns from a transition, and how its target follows it.

    network             package.module:Class of a network of your own, called with the shape of an
                        observation and the number of actions; its forward takes observations
                        [B, ...] and gives Q values [B, actions]. Empty: a perceptron
    hidden_sizes        widths of the perceptron's hidden layers
    dueling             let the perceptron estimate a state's value apart from what each action adds
    double              choose the next action with the network and value it with the target, which
                        overestimates less; without it the target does both
    discount            what a reward one step later is worth
    loss                "huber", which a surprising reward moves less, or "mse"
    target_rate         share of the way that the target network goes towards the network at each of
                        its updates; 1 copies it
    target_every_steps  optimizer steps from one update of the target network to the next
    """

    network: str = ""
    hidden_sizes: tuple[Positive, ...] = (128, 128)
    dueling: bool = True
    double: bool = True
    discount: Share = 0.99
    loss: Literal["huber", "mse"] = "huber"
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.02
    target_every_steps: Positive = 1


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """The environment, how it is explored, what is remembered, and how the agent is scored.

    environment          a name that gymnasium knows, "CartPole-v1", or that a module of yours
                         registers, "module:Name-v0"; or package.module:Class
    options              keyword arguments of the environment
    max_episode_steps    cut episodes off after so many steps; 0: as the environment says
    copies               copies of the environment in which the agent acts side by side
    acts_per_step        steps in each copy between one optimizer step and the next
    first_acts           transitions made at random before the first optimizer step
    replay_capacity      transitions that are remembered; the oldest make room for new ones
    batch_size           transitions drawn for a batch
    batches_per_epoch    batches in what counts as an epoch; experience has none of its own
    epsilon_first        share of random actions at the first optimizer step
    epsilon_last         share of random actions from step epsilon_steps on
    epsilon_steps        optimizer steps in which it falls from the first to the last, in a line
    evaluation_episodes  episodes of an evaluation, without random actions; 0: do not evaluate
    test_episodes        episodes of the test at the end of a run, with the best weights; 0: none
    """

    environment: str = "CartPole-v1"
    options: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: NotNegative = 0
    copies: Positive = 4
    acts_per_step: Positive = 1
    first_acts: Positive = 1_000
    replay_capacity: Annotated[int, Field(ge=1, lt=2**31)] = 50_000
    batch_size: Positive = 64
    batches_per_epoch: Positive = 1_000
    epsilon_first: Share = 1.0
    epsilon_last: Share = 0.05
    epsilon_steps: NotNegative = 2_000
    evaluation_episodes: NotNegative = 20
    test_episodes: NotNegative = 0

    def __post_init__(self) -> None:
        if self.first_acts > self.replay_capacity:
            raise ValueError(
                f"first_acts is {self.first_acts}, more than the replay_capacity of "
                f"{self.replay_capacity} can hold"
            )
