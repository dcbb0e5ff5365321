"""The data module: an environment to learn in, what is remembered of it, and episodes to score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from plugin_trainer.data.module import Fed
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.registry.blame import what_and_where
from ptrain_reinforcement.actor import Actor
from ptrain_reinforcement.episodes import EpisodeLoader, Episodes, OverEpisodes
from ptrain_reinforcement.experience import Experience
from ptrain_reinforcement.making import Env, make_environment
from ptrain_reinforcement.replay import DRAW_BITS, Replay
from ptrain_reinforcement.restoring import why_not_restorable
from ptrain_reinforcement.settings import EnvironmentSettings
from ptrain_reinforcement.spaces import Observations, count_actions

_FEW = 5


class Draws(Dataset[Any]):  # type: ignore[misc]
    """Every number below 2 ** 32. A batch of them, drawn by the engine, chooses transitions.

    So the engine's order of data, a function of the seed and the step, is the order of experience
    too, and no draw has a state to be saved.
    """

    def __len__(self) -> int:
        return 1 << DRAW_BITS

    def __getitems__(self, numbers: list[int]) -> dict[str, Tensor]:
        """One batch."""
        return {"draws": torch.tensor(numbers)}


class Environment:
    """What the engine asks of a data module, for an agent that makes its data itself.

    observation_shape, num_actions  what a network has to fit
    experience                      what is being lived through; None before a run begins
    episodes                        those of the latest evaluation
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        one = self._make()
        self._observations = Observations(one.observation_space, environment=settings.environment)
        self.observation_shape = self._observations.shape
        self.num_actions, self._first_action = count_actions(one, name=settings.environment)
        one.close()
        self.experience: Experience | None = None
        self.episodes: Episodes | None = None

    def _make(self) -> Env:
        settings = self.settings
        return make_environment(
            settings.environment,
            options=settings.options,
            max_episode_steps=settings.max_episode_steps,
        )

    def describe(self) -> str:
        """One line for the start of a run."""
        settings = self.settings
        shape = " x ".join(map(str, self.observation_shape)) or "1"
        copies = "1 copy" if settings.copies == 1 else f"{settings.copies} copies"
        return (
            f"{settings.environment}, {copies}, {shape} numbers an observation, "
            f"{self.num_actions} actions"
        )

    @cached_property
    def inexact_because(self) -> str:
        """Why a run in this environment cannot be resumed exactly; empty if it can."""
        name = self.settings.environment
        try:
            why = why_not_restorable(self._make)
        except PtrainError:
            raise
        except Exception as error:
            raise DataError(
                f"{name} failed when it was tried out", hint=what_and_where(error)
            ) from error
        if not why:
            return ""
        return f"{name} cannot be restored ({why}), so a resumed run begins new episodes"

    # ---------------------------------------------------------------------------------- training

    def train(self) -> DataLoader[Tensor]:
        """Draws, by which a batch of transitions is chosen once the agent has acted."""
        size, batches = self.settings.batch_size, self.settings.batches_per_epoch
        draws = Draws()
        sampler = RandomSampler(draws, replacement=True, num_samples=size * batches)
        return DataLoader(draws, batch_size=size, sampler=sampler, collate_fn=_as_it_is)

    def begin(self, *, seed: int, state: Mapping[str, Any] | None = None) -> None:
        """Begin to experience the environment, or go on from a state of it."""
        settings = self.settings
        actors = [
            Actor(self._make(), self._observations, seeds=(seed, "episodes", number))
            for number in range(settings.copies)
        ]
        shape, dtype = self._observations.shape, self._observations.dtype
        self.experience = Experience(
            settings,
            actors=actors,
            replay=Replay(settings.replay_capacity, shape, dtype),
            num_actions=self.num_actions,
            first_action=self._first_action,
            seed=seed,
        )
        if state is not None:
            self.experience.load_state_dict(state, exactly=not self.inexact_because)
            return
        for actor in actors:
            actor.begin()

    # -------------------------------------------------------------------------------- evaluation

    def validation(self) -> EpisodeLoader | None:
        """The episodes of an evaluation."""
        return self._episode_loader(self.settings.evaluation_episodes)

    def test(self) -> EpisodeLoader | None:
        """The episodes of the test."""
        return self._episode_loader(self.settings.test_episodes)

    def _episode_loader(self, count: int) -> EpisodeLoader | None:
        if count == 0:
            return None
        return EpisodeLoader(
            self._make,
            self._observations,
            count=count,
            first_action=self._first_action,
            begin=self._begin_episodes,
        )

    def _begin_episodes(self, episodes: Episodes) -> None:
        self.episodes = episodes

    def metrics(self) -> dict[str, Fed]:
        """Mean and least reward of an episode, and mean length."""
        return {
            "episode_reward": Fed(OverEpisodes("reward"), self._feed),
            "least_episode_reward": Fed(OverEpisodes("reward", least=True), self._feed),
            "episode_length": Fed(OverEpisodes("length"), self._feed),
        }

    def _feed(self, outputs: Mapping[str, Any], batch: Any) -> Sequence[Any]:
        del outputs, batch
        return (self.episodes,)

    # -------------------------------------------------------------------------------- prediction

    def predict(self, lines: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Observations, one as JSON in each line.

        Raises DataError that names every line which is none.
        """
        first_line = getattr(lines, "first_line", 1)
        observations, wrong = [], []
        for number, line in enumerate(lines, first_line):
            try:
                observations.append(self._observations.read(json.loads(line)))
            except json.JSONDecodeError:
                wrong.append(f"line {number}: it is not JSON")
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
        if wrong:
            more = [f"and {len(wrong) - _FEW} lines more"] if len(wrong) > _FEW else []
            raise DataError(
                f"observations of {self.settings.environment} are expected, one in each line",
                hint=[*wrong[:_FEW], *more],
            )
        yield {"observation": torch.from_numpy(np.stack(observations))}

    def decode(self, outputs: Mapping[str, Any], batch: Any) -> list[dict[str, Any]]:
        """The best action by its number in the environment, and all Q values."""
        del batch
        q_BA: Tensor = outputs["q"]
        return [
            {"action": self._first_action + int(q_A.argmax()), "q": q_A.tolist()}
            for q_A in q_BA.float().cpu()
        ]


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
