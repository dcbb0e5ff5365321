"""One copy of the environment, and the episode that is being lived in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugin_trainer.data.order import derive_seed
from ptrain_reinforcement.making import Env
from ptrain_reinforcement.restoring import CannotRestore, restore, state_of
from ptrain_reinforcement.spaces import Observation, Observations

_SEEDS = 2**31
"""Gymnasium takes seeds below this."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of an action.

    next_observation  the one the action led to, the last of its episode where that ended
    terminated        whether nothing comes after it
    ended             whether the episode is over: terminated, or cut off by a limit
    """

    observation: Observation
    reward: float
    next_observation: Observation
    terminated: bool
    ended: bool


class Actor:
    """Lives episode after episode in one environment.

    Each episode's seed follows from `seeds` and its number, so that what it begins with does not
    depend on what was before.

    reward, length  of the episode so far; of the one that is over, until the next `begin`
    """

    def __init__(
        self, environment: Env, observations: Observations, *, seeds: tuple[int | str, ...]
    ) -> None:
        self._environment = environment
        self._observations = observations
        self._seeds = seeds
        self._whole = True
        self.episode = -1
        self.observation: Observation
        self.reward, self.length = 0.0, 0

    def begin(self) -> None:
        """Begin the next episode."""
        self.episode += 1
        seed = derive_seed(*self._seeds, self.episode) % _SEEDS
        observation, _ = self._environment.reset(seed=seed)
        self.observation = self._observations.array(observation)
        self.reward, self.length, self._whole = 0.0, 0, True

    def move(self, action: int) -> Moved:
        """Take an action, given by its number in the environment."""
        self._whole = False
        found, reward, terminated, truncated, _ = self._environment.step(action)
        self._whole = True
        before, self.observation = self.observation, self._observations.array(found)
        self.reward += float(reward)
        self.length += 1
        return Moved(
            observation=before,
            reward=float(reward),
            next_observation=self.observation,
            terminated=bool(terminated),
            ended=bool(terminated or truncated),
        )

    def close(self) -> None:
        """Let go of the environment."""
        self._environment.close()

    def state_dict(self) -> dict[str, Any]:
        """The episode at hand; only its number where the environment's state cannot be taken, or
        was left half changed by an error.
        """
        state: dict[str, Any] = {"episode": self.episode}
        if not self._whole:
            return state
        try:
            state["environment"] = state_of(self._environment)
        except CannotRestore:
            return state
        return {
            **state,
            "observation": self.observation,
            "reward": self.reward,
            "length": self.length,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, exactly: bool) -> None:
        """Go on with an episode, or begin the next where it cannot be gone on with.

        exactly  whether the environment goes on as before once its state is put back
        """
        self.episode = int(state["episode"])
        if not exactly or "environment" not in state:
            self.begin()
            return
        # An environment has to be reset once before it steps, and may make things only then.
        self._environment.reset(seed=derive_seed(*self._seeds, self.episode) % _SEEDS)
        restore(self._environment, state["environment"])
        self.observation = state["observation"]
        self.reward, self.length = float(state["reward"]), int(state["length"])
