"""Call a plugin's registration hooks and keep what they return only if all of it is usable."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar, cast

from plugin_trainer.errors import PluginBroken
from plugin_trainer.registry.blame import what_and_where
from plugin_trainer.registry.manager import PluginManager
from plugin_trainer.registry.names import NAME, NAME_RULE, TARGET, TARGET_RULE
from plugin_trainer.registry.resolution import PluginSource
from plugin_trainer.specs import CallbackSpec, FileSpec, Spec

S = TypeVar("S", bound="Spec | FileSpec")


def collect(
    manager: PluginManager, hook: str, kind: type[S], *, source: PluginSource
) -> tuple[S, ...]:
    """What the one plugin of this manager returns from a registration hook.

    Raises PluginBroken for anything but specs of this kind with sound and distinct names.
    """
    if not getattr(manager.hook, hook).get_hookimpls():
        return ()
    specs = _call(manager, hook, kind, source=source)
    seen: set[str] = set()
    for spec in specs:
        if not isinstance(spec, kind):
            text = f"{hook} returned a list with {_kind_of(spec)} in it"
            raise _broken(source, text, f"{hook} offers {kind.__name__} and nothing else")
        if not isinstance(spec.name, str) or not NAME.fullmatch(spec.name):
            raise _broken(source, f"{hook} offers the name {spec.name!r}", f"a name is {NAME_RULE}")
        if spec.name in seen:
            raise _broken(source, f"{hook} offers '{spec.name}' twice")
        seen.add(spec.name)
        _check_strings(spec, hook=hook, source=source)
    defaults = [spec.name for spec in specs if spec.default]
    if len(defaults) > 1 and kind is not CallbackSpec:
        text = f"{hook} has {len(defaults)} defaults: {', '.join(defaults)}"
        raise _broken(source, text, "keep one")
    return specs


def _call(
    manager: PluginManager, hook: str, kind: type[S], *, source: PluginSource
) -> tuple[S, ...]:
    try:
        answers = getattr(manager.hook, hook)()
        # pluggy leaves out an answer of None.
        returned = answers[0] if answers else None
        if returned is not None and not isinstance(returned, (str, Spec, FileSpec)):
            return tuple(cast("Iterable[S]", returned))
    except (Exception, SystemExit) as error:
        lines = what_and_where(error, target=source.target)
        raise _broken(source, f"{hook} failed", *lines) from error
    text = f"{hook} returned {_kind_of(returned)}, not a list of {kind.__name__}"
    raise _broken(source, text, f"write: return [{kind.__name__}(...)]")


def _check_strings(spec: Spec | FileSpec, *, hook: str, source: PluginSource) -> None:
    offers = f"{hook} offers '{spec.name}' with"
    if isinstance(spec, FileSpec):
        file = Path(spec.file)
        if not spec.file or file.is_absolute() or ".." in file.parts:
            beside = 'name a TOML file beside the hook module, such as "recipe.toml"'
            raise _broken(source, f"{offers} file {spec.file!r}", beside)
        return
    for key, value in (("target", spec.target), ("settings", spec.settings)):
        optional = key == "settings" and value == ""
        if not optional and not (isinstance(value, str) and TARGET.fullmatch(value)):
            raise _broken(source, f"{offers} {key} {value!r}", f"write it as {TARGET_RULE}")


def _kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _broken(source: PluginSource, text: str, *hint: str) -> PluginBroken:
    return PluginBroken(f"plugin '{source.name}': {text}", plugin=source.name, hint=hint)
