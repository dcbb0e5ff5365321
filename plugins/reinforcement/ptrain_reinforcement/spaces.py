"""Observations and actions of an environment as tensors, and spaces that cannot become any."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from plugin_trainer.errors import DataError

Observation = NDArray[Any]


class Observations:
    """Observations of one space as arrays of one shape.

    A Box keeps its shape; bytes stay bytes, for a network that takes images, and all other numbers
    become float32. What is no Box is flattened: a Discrete one to zeros and a one, a Dict or a
    Tuple to its parts one after the other.

    Raises DataError for a space that has no such form.
    """

    def __init__(self, space: spaces.Space[Any], *, environment: str) -> None:
        self._space = space
        self._is_box = isinstance(space, spaces.Box)
        if not self._is_box and not space.is_np_flattenable:
            raise DataError(
                f"{environment}: its observations, {space}, have no fixed number of values",
                hint="wrap the environment in one whose observations are a Box",
            )
        flat = space if self._is_box else spaces.flatten_space(space)
        self.shape: tuple[int, ...] = tuple(flat.shape or ())
        self.dtype = np.dtype(np.uint8 if flat.dtype == np.uint8 else np.float32)

    def array(self, observation: Any) -> Observation:
        """An observation of the environment as a new array."""
        values = observation if self._is_box else spaces.flatten(self._space, observation)
        return np.array(values, dtype=self.dtype).reshape(self.shape)

    def read(self, value: Any) -> Observation:
        """An observation from its JSON. Raises ValueError if it is none of this space."""
        array = self.array(_from_json(self._space, value))
        if not np.isfinite(array).all():
            raise ValueError("it has a number that is not finite")
        return array


def _from_json(space: spaces.Space[Any], value: Any) -> Any:
    if isinstance(space, spaces.Dict) and isinstance(value, dict):
        if value.keys() != space.keys():
            raise ValueError(f"its keys are {', '.join(value)} in place of {', '.join(space)}")
        return {name: _from_json(part, value[name]) for name, part in space.items()}
    if isinstance(space, spaces.Tuple) and isinstance(value, list):
        return tuple(_from_json(part, one) for part, one in zip(space, value, strict=True))
    if isinstance(space, spaces.Box):
        try:
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError("it is no array of numbers") from None
        if array.shape != space.shape:
            # Out of its bounds it may be: an environment's own observations are, at times.
            raise ValueError(f"its shape is {array.shape} in place of {space.shape}")
        if space.dtype == np.uint8 and not ((array >= 0) & (array <= 255)).all():
            raise ValueError("its numbers are not all from 0 to 255")
        return array
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) and isinstance(value, list):
        value = np.array(value, dtype=space.dtype)
    if not space.contains(value):
        raise ValueError(f"{value} is none of {space}")
    return value


def count_actions(environment: gymnasium.Env[Any, Any], *, name: str) -> tuple[int, int]:
    """How many actions there are, and the number of the first.

    Raises DataError for actions that cannot be counted.
    """
    space = environment.action_space
    if not isinstance(space, spaces.Discrete):
        raise DataError(
            f"{name}: its actions are {space}, and a Q value is kept for each of a few",
            hint="use an environment with Discrete actions, or wrap this one in one",
        )
    return int(space.n), int(space.start)
