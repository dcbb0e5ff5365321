"""The replay buffer: transitions in tensors that are made once and filled round and round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugin_trainer.errors import ResumeError
from ptrain_reinforcement.spaces import Observation

# B transitions of a batch, R transitions that the buffer has room for

DRAW_BITS = 32
"""A draw is a number below 2 ** 32: a place in the buffer, however full that is."""

_FIELDS = ("observation", "action", "reward", "next_observation", "terminated")


class Replay:
    """The newest transitions, of which batches are drawn with equal chances.

    A transition ends in its `next_observation`, and is `terminated` where nothing comes after it.
    An episode that was merely cut off goes on as far as values are concerned.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        of_observations = torch.from_numpy(np.zeros(0, dtype)).dtype
        self.capacity = capacity
        self.size = 0
        self._next = 0  # where the next transition goes
        self._tensors = {
            "observation": torch.zeros(capacity, *shape, dtype=of_observations),
            "action": torch.zeros(capacity, dtype=torch.int64),
            "reward": torch.zeros(capacity, dtype=torch.float32),
            "next_observation": torch.zeros(capacity, *shape, dtype=of_observations),
            "terminated": torch.zeros(capacity, dtype=torch.bool),
        }
        # The same memory: writing one row through NumPy takes a tenth of what torch takes for it.
        self._arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def add(
        self,
        observation: Observation,
        *,
        action: int,
        reward: float,
        next_observation: Observation,
        terminated: bool,
    ) -> None:
        """Remember one transition, in the place of the oldest where there is no room."""
        place, arrays = self._next, self._arrays
        arrays["observation"][place] = observation
        arrays["action"][place] = action
        arrays["reward"][place] = reward
        arrays["next_observation"][place] = next_observation
        arrays["terminated"][place] = terminated
        self._next = (place + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def drawn(self, draws_B: Tensor) -> dict[str, Tensor]:
        """The transitions that so many draws below 2 ** DRAW_BITS choose, as new tensors."""
        places_B = (draws_B * self.size) >> DRAW_BITS
        return {name: tensor.index_select(0, places_B) for name, tensor in self._tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """The transitions there are, in their places, and where the next one goes."""
        filled = {name: tensor[: self.size] for name, tensor in self._tensors.items()}
        return {"next": self._next, "capacity": self.capacity, **filled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take transitions back; of a larger buffer, the newest.

        Raises ResumeError if they are of observations of another shape.
        """
        mine, theirs = self._tensors["observation"], state["observation"]
        if (theirs.shape[1:], theirs.dtype) != (mine.shape[1:], mine.dtype):
            raise ResumeError(
                f"the checkpoint remembers observations of shape {tuple(theirs.shape[1:])}, and "
                f"the environment's have {tuple(mine.shape[1:])}",
                hint="go on with the run's own environment, or start another run",
            )
        kept: dict[str, Tensor] = {name: state[name] for name in _FIELDS}
        following = int(state["next"])
        if state["capacity"] != self.capacity:
            # By age, the oldest first, so that they can be counted off from the newest.
            kept = {name: tensor.roll(-following, 0) for name, tensor in kept.items()}
            kept = {name: tensor[-self.capacity :] for name, tensor in kept.items()}
            following = len(kept["action"]) % self.capacity
        self.size, self._next = len(kept["action"]), following
        for name, tensor in kept.items():
            self._tensors[name][: self.size] = tensor
