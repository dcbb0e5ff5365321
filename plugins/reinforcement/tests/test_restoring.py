"""Environments put back where they were: exactly, or not at all and with a reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, NormalizeObservation, TimeLimit
from ptrain_reinforcement.making import make_environment
from ptrain_reinforcement.restoring import restore, state_of, why_not_restorable

from plugin_trainer.training.checkpointing.state_codec import decode, encode

WHOLE = [
    "CartPole-v1",
    "MountainCar-v0",
    "Acrobot-v1",
    "FrozenLake-v1",
    "CliffWalking-v1",
    "Taxi-v4",
    "Blackjack-v1",
]


def through_a_checkpoint(state: Any) -> Any:
    """What comes back of a state that was written and read."""
    tensors: dict[str, torch.Tensor] = {}
    return decode(json.loads(json.dumps(encode(state, tensors))), tensors)


def lived(environment: gymnasium.Env[Any, Any], actions: list[Any]) -> list[Any]:
    found = []
    for action in actions:
        observation, reward, terminated, truncated, _ = environment.step(action)
        found.append((np.asarray(observation).tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            # Without a seed: the generator must be the same, too.
            found.append(np.asarray(environment.reset()[0]).tobytes())
    return found


def goes_on_as_before(make: Callable[[], gymnasium.Env[Any, Any]], steps: int = 60) -> None:
    first, second = make(), make()
    chosen = np.random.default_rng(0).integers(first.action_space.n, size=2 * steps).tolist()
    first.reset(seed=1)
    second.reset(seed=2)
    lived(first, chosen[:steps])
    restore(second, through_a_checkpoint(state_of(first)))
    assert lived(first, chosen[steps:]) == lived(second, chosen[steps:])


@pytest.mark.parametrize("name", WHOLE)
def test_an_environment_of_gymnasium_written_in_python_is_restored_exactly(name: str) -> None:
    assert why_not_restorable(lambda: make_environment(name)) == ""
    goes_on_as_before(lambda: make_environment(name))


def test_a_time_limit_goes_on_counting_from_where_it_was() -> None:
    first, second = (make_environment("CartPole-v1", max_episode_steps=9) for _ in range(2))
    for environment in (first, second):
        environment.reset(seed=3)
    for _ in range(4):
        first.step(0)
        first.step(1)
    restore(second, through_a_checkpoint(state_of(first)))
    *_, truncated, _ = second.step(0)
    assert truncated


def test_wrappers_that_stack_frames_are_restored() -> None:
    goes_on_as_before(lambda: FrameStackObservation(gymnasium.make("CartPole-v1"), 3))


def test_a_wrapper_that_gathers_statistics_in_an_object_of_its_own_is_named() -> None:
    why = why_not_restorable(lambda: NormalizeObservation(gymnasium.make("CartPole-v1")))
    assert why == "NormalizeObservation.obs_rms is a RunningMeanStd"


def test_numbers_of_numpy_keep_their_precision(worlds: Any) -> None:
    class Narrow(worlds.Corridor):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.sum = np.float32(0.1)
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            self.sum = self.sum * np.float32(1.1)
            seen, _, *rest = super().step(action)
            return seen, self.sum + 1e-9, *rest

    goes_on_as_before(Narrow, steps=5)
    first = Narrow()
    first.reset(seed=0)
    second = Narrow()
    restore(second, through_a_checkpoint(state_of(first)))
    assert isinstance(second.sum, np.float32)


def test_methods_of_its_own_come_before_attributes(worlds: Any) -> None:
    assert why_not_restorable(worlds.Saves) == ""
    goes_on_as_before(worlds.Saves)
    goes_on_as_before(lambda: TimeLimit(worlds.Saves(), 7))


def test_what_hides_its_state_is_found_out(worlds: Any) -> None:
    assert why_not_restorable(worlds.Opaque) == "Opaque.winds is a cycle"
    assert why_not_restorable(worlds.Secretive) == "its attributes are not all of its state"


def test_trying_it_out_leaves_the_random_streams_where_they_were(worlds: Any) -> None:
    def streams() -> Any:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = streams()
    assert why_not_restorable(worlds.Gusty) == "its attributes are not all of its state"
    assert streams() == before


def test_a_state_does_not_move_on_with_its_environment(worlds: Any) -> None:
    environment = worlds.Gusty()
    environment.reset(seed=0)
    state = state_of(environment)
    before = json.dumps(encode(state, {}))
    environment.step(1)
    assert json.dumps(encode(state, {})) == before
