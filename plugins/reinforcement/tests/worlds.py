"""Environments of the tests: one whose state is its attributes, others that hide some of theirs."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

PLACES = 5


class Corridor(gymnasium.Env):
    """Go right to the end of a corridor, against a wind that sometimes blows one back.

    Action 0 goes left, 1 right. Every step costs 0.1 and the end gives 1.
    """

    observation_space = spaces.Box(0.0, 1.0, (PLACES,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, wind: float = 0.1, places: int = PLACES) -> None:
        self.wind = wind
        self.places = places
        self.observation_space = spaces.Box(0.0, 1.0, (places,), np.float32)
        self.place = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(self.places - 1))
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        blown = self.np_random.random() < self.wind
        move = -1 if blown or action == 0 else 1
        self.place = min(max(self.place + move, 0), self.places - 1)
        done = self.place == self.places - 1
        return self._seen(), 1.0 if done else -0.1, done, False, {}

    def _seen(self) -> Any:
        seen = np.zeros(self.places, np.float32)
        seen[self.place] = 1
        return seen


class Opaque(Corridor):
    """Keeps its wind where no attribute shows it: in a generator of Python."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        found = super().reset(seed=seed)
        self.winds = itertools.cycle([False, False, True])
        return found

    def step(self, action: Any) -> Any:
        self.wind = float(next(self.winds))
        return super().step(action)


class Gusty(Corridor):
    """Takes its wind from the random stream of the whole process, and notes it in an array."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.winds = np.zeros(3)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.winds[0] += np.random.random()
        self.wind = self.winds[0] % 1
        return super().step(action)


class Secretive(Corridor):
    """Its attributes look like all there is, and the wind depends on something else."""

    _steps: ClassVar[dict[int, int]] = {}

    def step(self, action: Any) -> Any:
        steps = Secretive._steps[id(self)] = Secretive._steps.get(id(self), 0) + 1
        self.wind = float(steps % 5 == 0)
        return super().step(action)


class Saves(Opaque):
    """Hides its wind, and has methods of its own to take its state and put it back."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return super().step(action)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "place": self.place,
            "random": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.place = state["steps"], state["place"]
        self.np_random.bit_generator.state = state["random"]
        self.winds = itertools.cycle([False, False, True])
        for _ in range(self.steps % 3):
            next(self.winds)


class Breaks(Corridor):
    """Fails in one of its steps."""

    def __init__(self, after: int = 80) -> None:
        super().__init__()
        self.steps_left = after

    def step(self, action: Any) -> Any:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise OSError("the joystick came off")
        return super().step(action)


class From5(Corridor):
    """Its actions are 5 and 6."""

    action_space = spaces.Discrete(2, start=5)

    def step(self, action: Any) -> Any:
        assert action in (5, 6)
        return super().step(action - 5)


class Continuous(Corridor):
    """Takes any number between -1 and 1 for an action."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Parts(Corridor):
    """Tells its place as a number in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"place": spaces.Discrete(PLACES), "end": spaces.Box(0.0, 9.0, (1,), np.float32)}
        )

    def _seen(self) -> Any:
        return {"place": self.place, "end": np.array([PLACES], np.float32)}


class History(Corridor):
    """Tells all the places it has been to."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Sequence(spaces.Discrete(PLACES))


class Picture(Corridor):
    """Shows its place as a picture of 1 x 5 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (1, PLACES), np.uint8)

    def _seen(self) -> Any:
        return (super()._seen() * 255).astype(np.uint8)[None]


class NotOne:
    """No environment at all."""


class KillAt:
    """A callback that kills its process, without warning, after the step named in KILL_AT."""

    def __init__(self, settings: Any = None) -> None:
        del settings

    def ptrain_step_end(self, run: Any) -> None:
        if os.environ.get("KILL_AT") == str(run.progress.step):
            os.kill(os.getpid(), signal.SIGKILL)
