"""From what was typed to a run whose parts are all named and settings all checked; no torch yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugin_trainer.errors import PluginBroken, Problem, PtrainError, SettingsError, UnknownOffer
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import Catalog, Kind, Offer, open_catalog, plugins_named_in
from plugin_trainer.registry.loading import recipe_path
from plugin_trainer.settings.layers import Layer, Merged, look_up, merge, read_toml
from plugin_trainer.settings.render import to_values
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key, join_key, split_key
from plugin_trainer.settings.validation import validate


@dataclass(frozen=True)
class Choice:
    """One part of a run: which offer, and its settings as its dataclass, or as a table."""

    offer: Offer[Any]
    settings: Any

    @property
    def address(self) -> str:
        """How the part is named in a run file: dactbert/classifier."""
        return self.offer.address

    def values(self) -> dict[str, Any]:
        """The settings as a table of TOML values, defaults included."""
        return (
            to_values(self.settings)
            if dataclasses.is_dataclass(self.settings)
            else dict(self.settings)
        )


@dataclass(frozen=True)
class Configuration:
    """A run before it is built.

    model, data  None if the caller brings them as objects
    origins      where each key of the settings was given
    """

    settings: RunSettings
    catalog: Catalog
    model: Choice | None
    data: Choice | None
    schedule: Choice
    callbacks: tuple[Choice, ...]
    origins: Mapping[Key, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The whole run as a table of TOML values: what `run.toml` in the run folder says."""
        return to_values(self.settings)


def configure(
    run_file: Layer | None = None,
    *,
    plugins: Sequence[str] = (),
    overrides: Layer | None = None,
    folder: Path | None = None,
    parts: bool = True,
) -> Configuration:
    """Lay the sources over each other, open the plugins they name, and check everything.

    run_file   a run file's settings
    plugins    plugins named beside it, as typed
    overrides  what goes over everything: --set
    folder     the folder that relative plugin paths start from
    parts      whether the run has a model and a data module of its own; the library's `fit` brings
               them

    Raises SettingsError with every mistake, or what the registry raises for a plugin that cannot be
    used.
    """
    given = [layer for layer in (run_file, overrides) if layer is not None]
    catalog = open_catalog(_plugins_of(merge(given).values, plugins), folder=folder)
    recipe = _recipe(catalog, plugins, merge(given).values)
    merged = merge([recipe, *given] if recipe else given)
    catalog = open_catalog(_plugins_of(merged.values, plugins), folder=folder)
    # Spelt out, so that the settings of a run can be read again from any folder.
    spelt_out = [p.source.spelling for p in catalog.plugins if p.source.origin != "core"]
    if spelt_out and _is_list_of_names(merged.values.get("plugins", [])):
        merged.values["plugins"] = spelt_out
        merged.origins.setdefault(("plugins",), "--plugin" if plugins else "default")
    return _Checker(merged, catalog).run(parts=parts)


def _plugins_of(values: Mapping[str, Any], typed: Sequence[str]) -> list[str]:
    """Every plugin that takes part, in the order named: outright, or by the address of an offer."""
    listed = values.get("plugins", [])
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    callbacks = values.get("callbacks", [])
    addresses = [
        values.get("model"),
        values.get("data"),
        look_up(values, ("schedule", "name")),
        *(callbacks if isinstance(callbacks, list) else []),
    ]
    implied = plugins_named_in(
        address.removeprefix("-") for address in addresses if isinstance(address, str)
    )
    known = dict.fromkeys([*typed, *names])
    known.update(dict.fromkeys(name for name in implied if name not in known))
    return [*known]


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _recipe(catalog: Catalog, typed: Sequence[str], values: Mapping[str, Any]) -> Layer | None:
    """The plugin's own run file, for a run that does not choose its model and data itself."""
    if values.get("model") or values.get("data") or not (typed or values.get("plugins")):
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


class _Checker:
    """Checks one merged table, collecting problems instead of stopping at the first."""

    def __init__(self, merged: Merged, catalog: Catalog) -> None:
        self.merged = merged
        self.catalog = catalog
        self.problems: list[Problem] = []

    def run(self, *, parts: bool) -> Configuration:
        values = self.merged.values
        _, problems = validate(RunSettings, values, place_of=self.merged.place_of)
        self.problems += problems
        model = data = None
        if parts:
            model = self._choose("model", "model", "model_settings")
            self._fill_in_data_defaults()
            data = self._choose("data", "data", "data_settings")
        schedule = self._choose(
            "scheduler", "schedule.name", "schedule_settings", default="core/linear"
        )
        callbacks = self._choose_callbacks()
        if self.problems or schedule is None:
            raise SettingsError(self.problems)
        settings, _ = validate(
            RunSettings,
            {
                **values,
                "model": model.address if model else "",
                "data": data.address if data else "",
                "schedule": {**values.get("schedule", {}), "name": schedule.address},
                "model_settings": model.values() if model else {},
                "data_settings": data.values() if data else {},
                "schedule_settings": schedule.values(),
                "callback_settings": {
                    choice.address: choice.values() for choice in callbacks if choice.values()
                },
            },
            place_of=self.merged.place_of,
        )
        return Configuration(
            settings, self.catalog, model, data, schedule, tuple(callbacks), self.merged.origins
        )

    def _problem(self, key: Key, text: str) -> None:
        self.problems.append(Problem(self.merged.place_of(key), join_key(key), text))

    def _choose(self, kind: Kind, dotted: str, table: str, default: str = "") -> Choice | None:
        key = split_key(dotted)
        name = look_up(self.merged.values, key) or default
        if not isinstance(name, str):
            return None
        offer = self._find(kind, name, key) if name else self._default(kind, key)
        if offer is None:
            return None
        return self._with_settings(offer, self.merged.values.get(table, {}), (table,))

    def _default(self, kind: Kind, key: Key) -> Offer[Any] | None:
        offer = self.catalog.default(kind)
        if offer is None:
            offered = ", ".join(offer.address for offer in self.catalog.offers(kind))
            self._problem(
                key,
                f"which one? there are: {offered}"
                if offered
                else "is required: name one, or a plugin that has one with --plugin NAME",
            )
        return offer

    def _find(self, kind: Kind, name: str, key: Key) -> Offer[Any] | None:
        try:
            return self.catalog.find(kind, name)
        except UnknownOffer as error:
            text = "; ".join((error.message, *error.hint))
            self._problem(key, " ".join(text.split()))
            return None

    def _with_settings(self, offer: Offer[Any], values: Any, at: Key) -> Choice | None:
        if not isinstance(values, Mapping):
            return None
        cls = settings_class(offer)
        if cls is None:
            return Choice(offer, dict(values))
        instance, problems = validate(cls, values, place_of=self.merged.place_of, at=at)
        self.problems += problems
        return None if problems else Choice(offer, instance)

    def _fill_in_data_defaults(self) -> None:
        """Give the data module's unset keys the values they are declared to take from elsewhere."""
        name = self.merged.values.get("data")
        try:
            offer = self.catalog.find("data", name) if name else self.catalog.default("data")
        except PtrainError:
            return
        if offer is None:
            return
        table = self.merged.values.setdefault("data_settings", {})
        for name, source in offer.spec.defaults_from.items():
            value = look_up(self.merged.values, split_key(source))
            if value is not None and isinstance(table, dict) and name not in table:
                table[name] = value
                self.merged.origins[("data_settings", name)] = f"from {source}"

    def _choose_callbacks(self) -> list[Choice]:
        """The defaults and the listed ones, less those taken away, each with its settings."""
        listed = self.merged.values.get("callbacks", [])
        names = (
            [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        )
        offers = {offer.address: offer for offer in _default_callbacks(self.catalog)}
        for name in names:
            offer = self._find("callback", name.removeprefix("-"), ("callbacks",))
            if offer is None:
                continue
            if not name.startswith("-"):
                offers.setdefault(offer.address, offer)
            elif offers.pop(offer.address, None) is None and not offer.spec.default:
                self._problem(
                    ("callbacks",), f"'{name}' takes away a callback that is not part of the run"
                )
        offers = dict(sorted(offers.items(), key=lambda item: item[1].spec.last))
        tables = self._callback_tables(offers)
        choices = []
        for address, offer in offers.items():
            spelling, table = tables.get(address, (address, {}))
            choices.append(self._with_settings(offer, table, ("callback_settings", spelling)))
        return [choice for choice in choices if choice is not None]

    def _callback_tables(self, offers: Mapping[str, Offer[Any]]) -> dict[str, tuple[str, Any]]:
        """By the address of each callback: how its settings table is spelt, and the table."""
        tables: dict[str, tuple[str, Any]] = {}
        given = self.merged.values.get("callback_settings", {})
        for name, table in given.items() if isinstance(given, Mapping) else ():
            key = ("callback_settings", name)
            offer = self._find("callback", name, key)
            if offer is None:
                continue
            if offer.address not in offers and not _is_installed(offer):
                continue  # the run was written down where a default callback had its packages
            if offer.address not in offers:
                self._problem(
                    key,
                    f"this run has no callback '{name}': add it to callbacks, or remove the table",
                )
                continue
            tables[offer.address] = (name, table)
            for known in [known for known in self.merged.origins if known[:2] == key]:
                spelt_out = ("callback_settings", offer.address, *known[2:])
                self.merged.origins[spelt_out] = self.merged.origins[known]
        return tables


def _default_callbacks(catalog: Catalog) -> list[Offer[Any]]:
    offers = catalog.offers("callback")
    return [offer for offer in offers if offer.spec.default and _is_installed(offer)]


def _is_installed(offer: Offer[Any]) -> bool:
    """Whether the packages are there that the callback cannot do without."""
    return all(map(_can_be_found, offer.spec.requires))


def _can_be_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name, where the package around it is missing
        return False
