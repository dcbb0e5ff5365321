"""The recipe, the run file and --set as one table, and the catalog of the plugins they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_trainer.configuration.plugins_named import Unusable, open_usable
from plugin_trainer.errors import PluginBroken
from plugin_trainer.registry.catalog import Catalog, Offer
from plugin_trainer.registry.loading import recipe_path
from plugin_trainer.settings.layers import Layer, Merged, merge, read_toml
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.validation import with_texts


def laid_over(
    run_file: Layer | None,
    overrides: Layer | None,
    *,
    plugins: Sequence[str],
    folder: Path | None,
) -> tuple[Merged, Catalog, Unusable]:
    """The sources over each other, the plugins that they name, and those that cannot be used.

    plugins  plugins named beside the sources, as typed
    folder   the folder that relative plugin paths start from
    """
    given = [layer for layer in (run_file, overrides) if layer is not None]
    values = merge(given).values
    catalog, _ = open_usable(values, plugins, folder=folder)  # one of them may have the recipe
    recipe = recipe_for(catalog, values, plugins=plugins)
    merged = merge([recipe, *given] if recipe else given)
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


def read_recipe(offer: Offer[Any]) -> Layer:
    """A plugin's recipe as a layer. Raises PluginBroken if the file is not there."""
    assert offer.plugin is not None
    path = recipe_path(offer.plugin, offer.spec)
    if not path.is_file():
        raise PluginBroken(
            f"plugin '{offer.owner}' offers the recipe '{offer.spec.name}', but not {path}",
            plugin=offer.owner,
            hint="the file is named relative to the folder of the plugin's hook module",
        )
    return read_toml(path, where=f"{offer.owner}'s recipe")
