"""Episodes that an agent is scored on: side by side, from seeds of their own, without chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from plugin_trainer.errors import PtrainError
from ptrain_reinforcement.actor import Actor
from ptrain_reinforcement.making import Env
from ptrain_reinforcement.spaces import Observations

# N episodes of an evaluation, B of them that are not over

Figure = Literal["reward", "length"]


class Episodes:
    """The episodes of one evaluation."""

    def __init__(self, actors: list[Actor], *, first_action: int) -> None:
        self.actors = actors
        self._first_action = first_action
        self._going_on = list(actors)
        self._answered = True

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The observations of all episodes that are not over, again and again until all are.

        `act` must be told what to do before the next is asked for.
        """
        for actor in self.actors:
            actor.begin()
        while self._going_on:
            if not self._answered:
                raise PtrainError(
                    "nobody acts in the episodes of the evaluation",
                    hint='add the plugin to the run: plugins = ["reinforcement"]',
                )
            self._answered = False
            observations = np.stack([actor.observation for actor in self._going_on])
            yield {"observation": torch.from_numpy(observations)}

    def act(self, q_BA: Tensor) -> None:
        """Take the best action in each episode that is not over."""
        actions_B = q_BA.argmax(-1).tolist()
        moved_B = [
            actor.move(self._first_action + action)
            for actor, action in zip(self._going_on, actions_B, strict=True)
        ]
        self._going_on = [
            actor for actor, moved in zip(self._going_on, moved_B, strict=True) if not moved.ended
        ]
        self._answered = True

    def figures(self, what: Figure) -> Tensor:
        """The reward or the length of each episode [N], so far for those that are not over."""
        values = [float(getattr(actor, what)) for actor in self.actors]
        return torch.tensor(values, dtype=torch.float64)


class EpisodeLoader:
    """Gives the observations of fresh episodes each time it is iterated.

    The environments are made anew each time, so that nothing one of them has gathered has a say in
    what follows. The seeds come out of torch's stream, which an evaluation begins in the same
    place every time.

    begin  is told of the episodes of an iteration, for whoever acts in them
    """

    def __init__(
        self,
        make: Callable[[], Env],
        observations: Observations,
        *,
        count: int,
        first_action: int,
        begin: Callable[[Episodes], None],
    ) -> None:
        self._make = make
        self._observations = observations
        self._count = count
        self._first_action = first_action
        self._begin = begin

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seed = int(torch.randint(2**31, ()))
        actors = [
            Actor(self._make(), self._observations, seeds=(seed, number))
            for number in range(self._count)
        ]
        episodes = Episodes(actors, first_action=self._first_action)
        self._begin(episodes)
        try:
            yield from episodes.batches()
        finally:
            for actor in actors:
                actor.close()


class OverEpisodes(Metric):  # type: ignore[misc]
    """The mean or the least of a figure over the episodes of an evaluation.

    It is given the episodes, and looks at them when it is asked: what the last action brings comes
    after the last batch.
    """

    full_state_update = False

    def __init__(self, what: Figure, *, least: bool = False) -> None:
        super().__init__()
        self._what: Figure = what
        self._least = least
        self._episodes: Episodes | None = None

    def update(self, episodes: Episodes) -> None:
        """Look at these episodes in the end."""
        self._episodes = episodes

    def compute(self) -> Tensor:
        """The figure as they stand now."""
        if self._episodes is None:
            return torch.tensor(torch.nan)
        figures_N = self._episodes.figures(self._what)
        return figures_N.min() if self._least else figures_N.mean()

    def reset(self) -> None:
        """Forget the episodes."""
        super().reset()
        self._episodes = None
