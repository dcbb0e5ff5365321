"""The recipe, the run file and --set as one table, and the catalog of the plugins they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_trainer.configuration.plugins_named import Unusable, open_usable
from plugin_trainer.errors import PluginBroken
from plugin_trainer.registry.catalog import Catalog, Offer, open_catalog, plugins_named_in
from plugin_trainer.registry.discovery import installed_plugins
from plugin_trainer.registry.loading import path_of
from plugin_trainer.settings.layers import Layer, Merged, look_up, merge, read_toml
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.validation import with_texts


def laid_over(
    run_file: Layer | None,
    overrides: Layer | None,
    *,
    plugins: Sequence[str],
    folder: Path | None,
    space: str | None = None,
    over: Sequence[Layer] = (),
) -> tuple[Merged, Catalog, Unusable]:
    """The sources over each other, the plugins that they name, and those that cannot be used.

    plugins  plugins named beside the sources, as typed
    folder   the folder that relative plugin paths start from
    space    the search space of a plugin to lay under the run file; empty for the default one, if
             nothing else says what to search
    over     what goes over everything else
    """
    given = [layer for layer in (run_file, overrides, *over) if layer is not None]
    merged = merge(given)
    # One of these may have the recipe, and the recipe may name more.
    catalog, unusable = open_usable(merged.values, plugins, folder=folder)
    recipe = recipe_for(catalog, merged.values, plugins=plugins)
    below = [recipe] if recipe else []
    if space is not None and (found := _space_for(catalog, merge([*below, *given]), space)):
        below.append(found)
    if below:
        merged = merge([*below, *given])
        catalog, unusable = open_usable(merged.values, plugins, folder=folder)
    values = with_texts(RunSettings, merged.values, merged.texts)
    return dataclasses.replace(merged, values=values), catalog, unusable


def recipe_for(
    catalog: Catalog, values: Mapping[str, Any], *, plugins: Sequence[str]
) -> Layer | None:
    """The plugin's own run file, for a run that does not choose its model and data itself."""
    if values.get("model") or values.get("data") or not (plugins or values.get("plugins")):
        return None
    offer = catalog.default("recipe")
    return read_recipe(offer) if offer is not None else None


def read_run_file(name: str) -> Layer:
    """The run file at a path, or a plugin's recipe by its address, such as "dactbert/exits".

    Raises RunFolderError if there is no such file, SettingsError if it is not TOML, UnknownOffer.
    """
    plugins = plugins_named_in([name])
    is_file = not plugins or Path(name).exists()
    if is_file or plugins[0] not in {plugin.name for plugin in installed_plugins()}:
        return read_toml(Path(name))
    return read_recipe(open_catalog(plugins).find("recipe", name))


def _space_for(catalog: Catalog, given: Merged, name: str) -> Layer | None:
    """The named search space, or the default one where nothing given says what to search.

    Raises UnknownOffer.
    """
    if name:
        return read_space(catalog.find("space", name))
    if look_up(given.values, ("tune", "space")) or look_up(given.values, ("tune", "stages")):
        return None
    offer = catalog.default("space")
    return read_space(offer) if offer is not None else None


def read_recipe(offer: Offer[Any]) -> Layer:
    """A plugin's recipe as a layer. Raises PluginBroken if the file is not there."""
    return _read(offer, "recipe", where=f"{offer.owner}'s recipe")


def read_space(offer: Offer[Any]) -> Layer:
    """A plugin's search space as a layer. Raises PluginBroken if the file is not there."""
    return _read(offer, "search space", where=f"{offer.owner}'s space {offer.spec.name}")


def _read(offer: Offer[Any], noun: str, *, where: str) -> Layer:
    assert offer.plugin is not None
    path = path_of(offer.plugin, offer.spec)
    if not path.is_file():
        raise PluginBroken(
            f"plugin '{offer.owner}' offers the {noun} '{offer.spec.name}', but not {path}",
            plugin=offer.owner,
            hint="the file is named relative to the folder of the plugin's hook module",
        )
    return read_toml(path, where=where)
