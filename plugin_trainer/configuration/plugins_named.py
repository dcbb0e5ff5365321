"""The plugins that a run names, opened as far as they can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_trainer.errors import PluginError
from plugin_trainer.registry.catalog import Catalog, open_catalog, plugins_named_in
from plugin_trainer.registry.parts import PARTS
from plugin_trainer.settings.layers import look_up
from plugin_trainer.settings.toml_lines import Key

Unusable = list[tuple[Key, PluginError]]
"""What cannot be used, and under which key it was named; no key for --plugin."""


def open_usable(
    values: Mapping[str, Any], typed: Sequence[str], *, folder: Path | None
) -> tuple[Catalog, Unusable]:
    """The catalog of the plugins that can be used. Those that cannot hide nobody's mistakes."""
    named = _plugins_of(values, typed)
    try:
        return open_catalog([*named], folder=folder), []
    except PluginError as error:
        first = error
    usable: list[str] = []
    unusable: Unusable = []
    for name, key in named.items():
        names = {error.plugin for _, error in unusable}
        if name in names | {Path(name).stem for name in names}:
            continue  # an address names it again by its short name
        try:
            open_catalog([*usable, name], folder=folder)
        except PluginError as error:
            unusable.append((key, error))
        else:
            usable.append(name)
    if not unusable:
        raise first
    return open_catalog(usable, folder=folder), unusable


def _plugins_of(values: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Key]:
    """Every plugin that takes part, in the order named, and the key that names it.

    A plugin is named outright, or by the address of an offer; the ones typed have no key.
    """
    named: dict[str, Key] = dict.fromkeys(typed, ())
    listed = values.get("plugins", [])
    for name in listed if isinstance(listed, list) else []:
        if isinstance(name, str):
            named.setdefault(name, ("plugins",))
    for key in (*(part.named for part in PARTS.values()), ("callbacks",)):
        value = look_up(values, key)
        addresses = value if isinstance(value, list) else [value]
        for name in plugins_named_in(
            address.removeprefix("-") for address in addresses if isinstance(address, str)
        ):
            named.setdefault(name, key)
    return named
