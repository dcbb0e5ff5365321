"""What the agent lives through while it learns: it acts, explores and remembers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plugin_trainer.data.order import derive_seed
from plugin_trainer.errors import ResumeError
from ptrain_reinforcement.actor import Actor
from ptrain_reinforcement.replay import Replay
from ptrain_reinforcement.restoring import generator_of
from ptrain_reinforcement.settings import EnvironmentSettings

# N copies of the environment, A actions


class Experience:
    """The copies of the environment, the random draws of the exploration, and the replay buffer.

    actors        one for each copy, their first episodes begun
    first_action  the number of the first action in the environment
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        *,
        actors: Sequence[Actor],
        replay: Replay,
        num_actions: int,
        first_action: int,
        seed: int,
    ) -> None:
        self._settings = settings
        self._actors = actors
        self._num_actions = num_actions
        self._first_action = first_action
        self._random = np.random.default_rng(derive_seed(seed, "exploration"))
        self._ended: list[tuple[float, int]] = []  # reward and length, since they were last told of
        self.replay = replay
        self.acts = 0
        self.episodes = 0

    def grow(self, run: Any) -> None:
        """Act before the next optimizer step: at random until there is enough to learn from, then
        as the network says but for a share of random actions.
        """
        while self.replay.size < self._settings.first_acts:
            self._act(None)
        epsilon = self.epsilon(run.progress.step)
        for _ in range(self._settings.acts_per_step):
            self._act(self._chosen(run, epsilon))

    def epsilon(self, step: int) -> float:
        """The share of random actions once so many optimizer steps are made."""
        first, last = self._settings.epsilon_first, self._settings.epsilon_last
        steps = self._settings.epsilon_steps
        return last if step >= steps else first + (last - first) * step / steps

    def told(self, *, step: int) -> dict[str, float]:
        """The numbers for a log line. Episodes are told of once: in the line after they ended."""
        numbers = {
            "train/epsilon": self.epsilon(step),
            "train/episodes": float(self.episodes),
            "train/environment_steps": float(self.acts),
        }
        if self._ended:
            rewards, lengths = zip(*self._ended, strict=True)
            numbers["train/episode_reward"] = float(np.mean(rewards))
            numbers["train/episode_length"] = float(np.mean(lengths))
            self._ended.clear()
        return numbers

    def _act(self, chosen_N: Sequence[int] | None) -> None:
        """One action in each copy; at random where none are given."""
        if chosen_N is None:
            chosen_N = self._random.integers(self._num_actions, size=len(self._actors)).tolist()
        for actor, action in zip(self._actors, chosen_N, strict=True):
            moved = actor.move(self._first_action + action)
            self.replay.add(
                moved.observation,
                action=action,
                reward=moved.reward,
                next_observation=moved.next_observation,
                terminated=moved.terminated,
            )
            self.acts += 1
            if moved.ended:
                self.episodes += 1
                self._ended.append((actor.reward, actor.length))
                actor.begin()

    def _chosen(self, run: Any, epsilon: float) -> list[int]:
        """The best action in each copy by its Q value, or a random one with probability epsilon."""
        count = len(self._actors)
        at_random_N = self._random.random(count) < epsilon
        chosen_N = self._random.integers(self._num_actions, size=count)
        if not at_random_N.all():
            stack = torch.from_numpy(np.stack([actor.observation for actor in self._actors]))
            with acting(run.model), run.precision.autocast():
                q_NA: Tensor = run.model(stack.to(run.device))["q"]
            chosen_N = np.where(at_random_N, chosen_N, q_NA.argmax(-1).cpu().numpy())
        chosen: list[int] = chosen_N.tolist()
        return chosen

    # ------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything, in values that a checkpoint holds."""
        return {
            "replay": self.replay.state_dict(),
            "actors": [actor.state_dict() for actor in self._actors],
            "random": self._random.bit_generator.state,
            "ended": list(self._ended),
            "acts": self.acts,
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, exactly: bool) -> None:
        """Go on from a state.

        exactly  whether an environment goes on as before once its state is put back; if not, each
                 begins its next episode

        Raises ResumeError if the environment is another one.
        """
        self.replay.load_state_dict(state["replay"])
        if int(state["replay"]["action"].max()) >= self._num_actions:
            raise ResumeError(
                f"the checkpoint remembers actions that the environment does not have: there are "
                f"{self._num_actions}",
                hint="go on with the run's own environment, or start another run",
            )
        self._random = generator_of(state["random"]["bit_generator"], state["random"])
        self._ended = [(float(reward), int(length)) for reward, length in state["ended"]]
        self.acts, self.episodes = int(state["acts"]), int(state["episodes"])
        known = list(state["actors"])
        for actor in self._actors:  # copies that are new to the run begin with their first episode
            if known:
                actor.load_state_dict(known.pop(0), exactly=exactly)
            else:
                actor.begin()


@contextmanager
def acting(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
