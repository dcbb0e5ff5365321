"""Take the state out of an environment and put it into another one of its kind, without pickling.

An environment, or a wrapper around one, may offer it: `state_dict()` and `load_state_dict(state)`.
Of any other, the state is its attributes, as far as they are numbers, text, arrays, containers of
these, and random generators. That is all there is of CartPole and of most environments written in
Python. One that keeps anything else, such as a simulator written in C, cannot be restored; nor can
one that acts otherwise once it was, which is tried out.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from plugin_trainer.data.private_streams import private_streams
from ptrain_reinforcement.making import Env

_PLAIN = (type(None), bool, int, float, str)
_CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, np.ufunc)
# Numbers and truth values; a date or an object cannot be written.
_NUMERIC = "biuf"
_TRIED_STEPS = 24


class CannotRestore(Exception):
    """Why the state of an environment cannot be taken."""


def state_of(environment: Env) -> list[Any]:
    """The state of an environment, of its outermost wrapper first, in values that a checkpoint
    holds.

    Raises CannotRestore, naming what is in the way.
    """
    return [_state_of_layer(layer) for layer in _layers(environment)]


def restore(environment: Env, state: list[Any]) -> None:
    """Put a state into an environment made as the one it was taken from."""
    for layer, part in zip(_layers(environment), state, strict=True):
        if _has_own(layer):
            layer.load_state_dict(part)
        else:
            vars(layer).update({name: _thawed(value) for name, value in part.items()})


def why_not_restorable(make: Callable[[], Env]) -> str:
    """Why a state cannot be put into an environment so that it goes on as before; empty if it can.

    It is tried out on two that are made for it and closed again. The process's random streams are
    left as they were.
    """
    with private_streams(0):
        first, second = make(), make()
        try:
            return _tried(first, second)
        finally:
            first.close()
            second.close()


def _tried(first: Env, second: Env) -> str:
    space = first.action_space
    space.seed(0)
    actions = [space.sample() for _ in range(2 * _TRIED_STEPS)]
    first.reset(seed=1)
    second.reset(seed=2)
    _lived(first, actions[:_TRIED_STEPS])
    try:
        state = state_of(first)
    except CannotRestore as error:
        return str(error)
    restore(second, state)
    for gone_on, restored in zip(
        _lived(first, actions[_TRIED_STEPS:]), _lived(second, actions[_TRIED_STEPS:]), strict=True
    ):
        if gone_on != restored:
            return "its attributes are not all of its state"
    return ""


def _lived(environment: Env, actions: list[Any]) -> list[Any]:
    """What comes of these actions: observations, rewards and ends, by their bits."""
    found = []
    for number, action in enumerate(actions):
        observation, reward, terminated, truncated, _ = environment.step(action)
        flat = spaces.flatten(environment.observation_space, observation)
        bits = flat.tobytes() if isinstance(flat, np.ndarray) else repr(flat)
        found.append((bits, float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            environment.reset(seed=3 + number)
    return found


def _layers(environment: Any) -> Iterator[Any]:
    """The wrappers from the outermost on, then the environment itself."""
    while isinstance(environment, gymnasium.Wrapper):
        yield environment
        environment = environment.env
    yield environment


def _has_own(layer: Any) -> bool:
    # Asked of the class: a wrapper may pass on what it does not have itself.
    return hasattr(type(layer), "state_dict") and hasattr(type(layer), "load_state_dict")


def _state_of_layer(layer: Any) -> Any:
    if _has_own(layer):
        return layer.state_dict()
    state = {}
    for name, value in vars(layer).items():
        if isinstance(value, (gymnasium.Env, spaces.Space, EnvSpec, *_CODE)):
            continue  # the same in every environment made of the same name
        try:
            state[name] = _frozen(value)
        except CannotRestore as error:
            raise CannotRestore(f"{type(layer).__name__}.{name} {error}") from None
    return state


# Every value that is not plain is a list that begins with its kind, so that it comes back exactly.


def _frozen(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        return ["number", _frozen(np.array(value))]
    if type(value) is np.ndarray:
        if value.dtype.kind in _NUMERIC:
            return ["array", value.copy()]
        if value.dtype.kind in "SU":
            return ["text", value.dtype.str, list(value.shape), value.tobytes().hex()]
    if isinstance(value, np.random.Generator):
        return ["generator", type(value.bit_generator).__name__, value.bit_generator.state]
    if isinstance(value, np.random.RandomState):
        return ["random state", value.get_state(legacy=False)]
    if type(value) is deque:
        return ["deque", [_frozen(item) for item in value], value.maxlen]
    if type(value) is dict:
        return ["dict", [[_frozen(key), _frozen(item)] for key, item in value.items()]]
    for kind, container in _CONTAINERS.items():
        if type(value) is container:
            return [kind, [_frozen(item) for item in value]]
    raise CannotRestore(f"is a {type(value).__name__}")


def _thawed(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, content, *rest = value
    if kind == "number":
        return _thawed(content)[()]
    if kind == "array":
        return content.copy()
    if kind == "text":
        shape, text = rest
        return np.frombuffer(bytes.fromhex(text), dtype=content).reshape(shape).copy()
    if kind == "generator":
        return generator_of(content, rest[0])
    if kind == "random state":
        random_state = np.random.RandomState()
        random_state.set_state(content)
        return random_state
    if kind == "deque":
        return deque((_thawed(item) for item in content), maxlen=rest[0])
    if kind == "dict":
        return {_thawed(key): _thawed(item) for key, item in content}
    return _CONTAINERS[kind](_thawed(item) for item in content)


def generator_of(kind: str, state: Mapping[str, Any]) -> np.random.Generator:
    """A NumPy generator of this kind, "PCG64", that goes on from a state."""
    bits = getattr(np.random, kind)()
    bits.state = state
    return np.random.Generator(bits)
