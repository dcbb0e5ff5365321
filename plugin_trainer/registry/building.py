"""Import what an offer's strings name, and call it with its settings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from plugin_trainer.errors import DataError, PluginBroken, Problem, PtrainError, SettingsError
from plugin_trainer.registry.blame import hint_for, in_words
from plugin_trainer.registry.catalog import Offer
from plugin_trainer.registry.names import closest
from plugin_trainer.specs import CallbackSpec, DataSpec, ModelSpec, SchedulerSpec, Spec

# What a kind's target is called with, in order.
_CONTRACTS: dict[type[Spec], tuple[str, ...]] = {
    ModelSpec: ("settings", "data"),
    DataSpec: ("settings",),
    CallbackSpec: ("settings",),
    SchedulerSpec: ("optimizer", "settings", "total_steps"),
}

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# Where a run file has a kind's settings, and what it calls the kind.
_WORDS: dict[type[Spec], tuple[str, str]] = {
    ModelSpec: ("model", "model_settings"),
    DataSpec: ("data module", "data_settings"),
    CallbackSpec: ("callback", 'callback_settings."{address}"'),
    SchedulerSpec: ("scheduler", "schedule_settings"),
}


def import_target(target: str, *, plugin: str = "") -> Any:
    """The object that "package.module:attribute" names.

    plugin  who says so, for the error

    Raises PluginBroken.
    """
    module_name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _cannot_import(target, error, plugin=plugin) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = closest(part, vars(found)) if hasattr(found, "__dict__") else None
            said = f"plugin '{plugin}' names {target}" if plugin else f"there is no {target}"
            raise PluginBroken(
                f"{said}: {module_name} has no '{path}'",
                plugin=plugin,
                hint=f"did you mean '{near}'?" if near else (),
            ) from error
    return found


def settings_class(offer: Offer[Any]) -> type | None:
    """The dataclass that validates the offer's settings table.

    For a class named by its dotted path: the annotation of its parameter `settings`, if that is a
    dataclass. None means that the target takes its settings as keyword arguments.
    """
    spec = offer.spec
    if spec.settings:
        found = import_target(spec.settings, plugin=offer.owner)
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise PluginBroken(
                f"plugin '{offer.owner}' has {spec.settings} for the settings of '{spec.name}', "
                "but that is not a dataclass",
                plugin=offer.owner,
            )
        return found
    if offer.plugin is not None or spec.target.startswith("torch."):
        return None  # torch's own classes take keywords: no need to import them for that
    return _annotated_settings(import_target(spec.target))


def build(offer: Offer[Any], settings: Any, **context: Any) -> Any:
    """Call the offer's target.

    settings  an object of the offer's settings class; without one, a mapping of keyword arguments
    context   what else the kind's contract passes: data; or optimizer and total_steps

    Raises PluginBroken, and SettingsError for keywords that the target does not take.
    """
    spec = offer.spec
    target = import_target(spec.target, plugin=offer.owner)
    if settings_class(offer) is not None or _takes_whole_settings(offer, target):
        values = {"settings": settings, **context}
        arguments = [values[name] for name in _CONTRACTS[type(spec)]]
        return _call(offer, target, *arguments)
    return _call(offer, target, **_keywords(offer, target, settings, context))


def _takes_whole_settings(offer: Offer[Any], target: Any) -> bool:
    """A class named by its path that follows the contract, its settings being a plain mapping."""
    return offer.plugin is None and _settings_parameter(target) is not None


def _keywords(
    offer: Offer[Any], target: Any, settings: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings, and of the context what the target's signature asks for by name."""
    wrong = wrong_keywords(target, settings, given=context)
    if wrong:
        raise SettingsError(
            [Problem(_label(offer), f"{_table(offer)}.{key}", text) for key, text in wrong]
        )
    parameters = _parameters(target)
    return {**{name: context[name] for name in context if name in parameters}, **settings}


def wrong_settings(offer: Offer[Any], settings: Any) -> list[tuple[str, str]]:
    """What `build` would refuse of an offer that takes keywords, without building: key and text."""
    target = import_target(offer.spec.target, plugin=offer.owner)
    if settings_class(offer) is not None or _takes_whole_settings(offer, target):
        return []
    return wrong_keywords(target, settings, given=_CONTRACTS[type(offer.spec)])


def wrong_keywords(
    target: Any, keywords: Collection[str], *, given: Collection[str] = ()
) -> list[tuple[str, str]]:
    """The keywords that a target does not take or cannot do without, each with a sentence.

    given  what it is given beside them, if it asks for it
    """
    parameters = _parameters(target)
    kinds = {parameter.kind for parameter in parameters.values()}
    if not parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        return []
    accepted = [
        name
        for name, parameter in parameters.items()
        if name not in given and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    wrong = [(key, _takes_no(key, accepted)) for key in keywords if key not in parameters]
    wrong += [
        (name, "it is required")
        for name in accepted
        if parameters[name].default is inspect.Parameter.empty and name not in keywords
    ]
    return wrong


def _takes_no(key: str, accepted: list[str]) -> str:
    near = closest(key, accepted)
    text = f"it takes no '{key}'" + (f"; did you mean '{near}'?" if near else "")
    takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes none"
    return f"{text} ({takes})"


def _label(offer: Offer[Any]) -> str:
    return f"{_WORDS[type(offer.spec)][0]} '{offer.address}'"


def _table(offer: Offer[Any]) -> str:
    return _WORDS[type(offer.spec)][1].format(address=offer.address)


def _call(offer: Offer[Any], target: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return target(*args, **kwargs)
    except PtrainError:
        raise
    except OSError as error:
        raise DataError(f"{_label(offer)} cannot read its files", hint=in_words(error)) from error
    except Exception as error:
        raise PluginBroken(
            f"{_label(offer)} could not be built",
            plugin=offer.owner,
            hint=hint_for(error, target=offer.spec.target),
        ) from error


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """The target's parameters; none if it is written in C and does not say."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _settings_parameter(target: Any) -> inspect.Parameter | None:
    """The parameter `settings`, unless it is `**settings`."""
    parameter = _parameters(target).get("settings")
    return None if parameter is None or parameter.kind in _VARIADIC else parameter


def _annotated_settings(target: Any) -> type | None:
    parameter = _settings_parameter(target)
    found: Any = parameter.annotation if parameter else None
    if isinstance(found, str):
        # Looked up name by name: an annotation may also name what only a type checker imports.
        names = found.split(".")
        module = sys.modules.get(getattr(target, "__module__", ""))
        found = getattr(module, names[0], None)
        for name in names[1:]:
            found = getattr(found, name, None)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _cannot_import(target: str, error: BaseException, *, plugin: str) -> PluginBroken:
    whose = f" of plugin '{plugin}'" if plugin else ""
    hint = hint_for(error, target=target)
    if isinstance(error, ModuleNotFoundError) and Path(f"{error.name}.py").is_file():
        hint = [
            f"{error.name}.py is here, where Python does not look: PYTHONPATH=. ptrain ...",
            *hint,
        ]
    return PluginBroken(f"{target}{whose} could not be imported", plugin=plugin, hint=hint)
