"""Make an environment from the name a user writes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit

from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.registry.blame import in_words

Env = gymnasium.Env[Any, Any]


def make_environment(
    name: str, *, options: Mapping[str, Any] | None = None, max_episode_steps: int = 0
) -> Env:
    """The environment that a name of gymnasium, or package.module:Class, stands for.

    max_episode_steps  0: as it says itself

    Raises DataError if there is none of that name or it cannot be made with these options.
    """
    given = dict(options or {})
    try:
        target = _class_of(name)
        if target is None:
            # Its checker copies every observation; a step of CartPole takes twice as long with it.
            return gymnasium.make(
                name,
                max_episode_steps=max_episode_steps or None,
                disable_env_checker=True,
                **given,
            )
        environment = target(**given)
    except PtrainError:
        raise
    except Exception as error:
        raise DataError(
            f"data_settings.environment: {name} cannot be made", hint=in_words(error)
        ) from error
    if not isinstance(environment, gymnasium.Env):
        raise DataError(
            f"data_settings.environment: {name} is a {type(environment).__name__}",
            hint="derive it from gymnasium.Env",
        )
    return TimeLimit(environment, max_episode_steps) if max_episode_steps else environment


def _class_of(name: str) -> Any:
    """What package.module:Class names; None for a name that is gymnasium's to understand.

    Gymnasium itself reads module:Name-v0 as a name that the module registers when it is imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        return None
    return getattr(importlib.import_module(module_name), attribute, None)
