"""Optuna's sampler and pruner as [tune] names them.

Each trial has a sampler of its own, seeded by the run's seed, the stage and the trial's number:
what one worker draws does not depend on how often it was stopped in between.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import Problem, SettingsError
from plugin_trainer.registry.names import closest
from plugin_trainer.tuning.storage import import_optuna

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

_SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "grid": "RandomSampler"}
_PRUNERS = {"median": "MedianPruner", "none": "NopPruner"}


def make_sampler(tune: Mapping[str, Any], *, seed: int, stage: str, number: int) -> BaseSampler:
    """The sampler of one trial. Raises SettingsError for one that Optuna cannot make."""
    cls = _class_of("sampler", tune["sampler"], _SAMPLERS)
    text = f"{seed}/{stage}/{number}".encode()
    drawn = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    seeded = {"seed": drawn} if "seed" in inspect.signature(cls).parameters else {}
    return _made("sampler", cls, {**seeded, **tune.get("sampler_settings", {})})  # type: ignore[no-any-return]


def make_pruner(tune: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study. Raises SettingsError for one that Optuna cannot make."""
    cls = _class_of("pruner", tune["pruner"], _PRUNERS)
    return _made("pruner", cls, tune.get("pruner_settings", {}))  # type: ignore[no-any-return]


def _class_of(what: str, name: str, short: Mapping[str, str]) -> Callable[..., Any]:
    module = getattr(import_optuna(), f"{what}s")
    known = [
        found
        for found in module.__all__
        if found.endswith(what.capitalize()) and not found.startswith(("Base", "PartialFixed"))
    ]
    if name in short:
        name = short[name]
    if name not in known:
        near = closest(name, [*short, *known])
        text = f"did you mean '{near}'?" if near else f"there are: {', '.join([*short, *known])}"
        raise SettingsError([Problem("tune", what, f"Optuna has no {what} '{name}'; {text}")])
    found: Callable[..., Any] = getattr(module, name)
    return found


def _made(what: str, cls: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    import warnings

    from optuna.exceptions import ExperimentalWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return cls(**settings)
    except (TypeError, ValueError, ImportError) as error:
        line = str(error).splitlines()[0]
        text = f"Optuna's {getattr(cls, '__name__', what)} cannot be made: {line}"
        raise SettingsError([Problem("tune", f"{what}_settings", text)]) from None
