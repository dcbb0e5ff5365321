"""What can be told of a run that is not complete or not right: to explain it, to help write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plugin_trainer.configuration.callbacks import callback_offers
from plugin_trainer.configuration.draft import Draft
from plugin_trainer.configuration.sources import laid_over, recipe_for
from plugin_trainer.errors import UnknownOffer
from plugin_trainer.registry.catalog import Catalog, Kind
from plugin_trainer.registry.parts import PARTS
from plugin_trainer.settings.layers import Layer, Merged, look_up


def open_to_explain(
    run_file: Layer | None = None,
    *,
    plugins: Sequence[str] = (),
    overrides: Layer | None = None,
    folder: Path | None = None,
) -> tuple[Catalog, Merged]:
    """The plugins of a run that need not be complete or right, and what was given so far.

    Raises what the registry raises for a plugin that cannot be used.
    """
    merged, catalog, unusable = laid_over(run_file, overrides, plugins=plugins, folder=folder)
    for _, error in unusable:
        raise error
    return catalog, merged


def callbacks_in(catalog: Catalog, merged: Merged) -> list[str]:
    """The addresses of a run's callbacks, as far as they can be told."""
    return [*callback_offers(Draft(merged, catalog))]


def used_unasked(
    run_file: Layer | None = None, *, plugins: Sequence[str] = (), folder: Path | None = None
) -> dict[Kind, list[str]]:
    """By kind, the addresses of what a run may use whose file names nothing of that kind."""
    catalog, _ = open_to_explain(run_file, plugins=plugins, folder=folder)
    named = {"plugins": run_file.values.get("plugins")} if run_file else {}
    recipe = recipe_for(catalog, named, plugins=plugins)
    used: dict[Kind, list[str]] = {}
    for kind, part in PARTS.items():
        default = None if part.fallback else catalog.default(kind)
        used[kind] = [default.address] if default else [*filter(None, [part.fallback])]
        in_recipe = look_up(recipe.values, part.named) if recipe else None
        if isinstance(in_recipe, str):
            try:
                used[kind].append(catalog.find(kind, in_recipe).address)
            except UnknownOffer:
                used[kind].append(in_recipe)
    return used
