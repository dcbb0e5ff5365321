"""From what was typed to a run whose parts are all named and settings all checked; no torch yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugin_trainer.errors import (
    PluginBroken,
    PluginError,
    Problem,
    PtrainError,
    SettingsError,
    UnknownOffer,
)
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import Catalog, Kind, Offer, open_catalog, plugins_named_in
from plugin_trainer.registry.loading import recipe_path
from plugin_trainer.registry.names import closest
from plugin_trainer.settings.layers import Layer, Merged, look_up, merge, read_toml
from plugin_trainer.settings.render import to_values
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key, join_key, split_key
from plugin_trainer.settings.validation import validate, with_texts

TORCH_SCHEDULES = "torch.optim.lr_scheduler"
"""Where a schedule is looked for that no plugin offers and that is written like a class."""


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
    places       the recipe, the run file, --set: what there is of them, the lowest first
    """

    settings: RunSettings
    catalog: Catalog
    model: Choice | None
    data: Choice | None
    schedule: Choice
    callbacks: tuple[Choice, ...]
    origins: Mapping[Key, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

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
    used if that is all that is wrong.
    """
    catalog, merged, unusable = _laid_over(run_file, plugins, overrides, folder)
    # Spelt out, so that the settings of a run can be read again from any folder.
    spelt_out = [p.source.spelling for p in catalog.plugins if p.source.origin != "core"]
    if spelt_out and _is_list_of_names(merged.values.get("plugins", [])):
        merged.values["plugins"] = spelt_out
        merged.origins.setdefault(("plugins",), "--plugin" if plugins else "default")
    return _Checker(merged, catalog, unusable).run(parts=parts)


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
    catalog, merged, unusable = _laid_over(run_file, plugins, overrides, folder)
    for _, error in unusable:
        raise error
    values = with_texts(RunSettings, merged.values, merged.texts)
    return catalog, dataclasses.replace(merged, values=values)


def callbacks_in(catalog: Catalog, merged: Merged) -> list[str]:
    """The addresses of a run's callbacks, as far as they can be told."""
    return [*_Checker(merged, catalog, []).callback_offers()]


def _laid_over(
    run_file: Layer | None,
    plugins: Sequence[str],
    overrides: Layer | None,
    folder: Path | None,
) -> tuple[Catalog, Merged, Unusable]:
    """The sources over each other, and the plugins that they name."""
    given = [layer for layer in (run_file, overrides) if layer is not None]
    catalog, _ = _open(merge(given).values, plugins, folder)
    recipe = _recipe(catalog, plugins, merge(given).values)
    merged = merge([recipe, *given] if recipe else given)
    catalog, unusable = _open(merged.values, plugins, folder)
    return catalog, merged, unusable


Unusable = list[tuple[Key, PluginError]]
"""What cannot be used, and under which key it was named; no key for --plugin."""


def _open(
    values: Mapping[str, Any], typed: Sequence[str], folder: Path | None
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
    for key in (("model",), ("data",), ("schedule", "name"), ("callbacks",)):
        value = look_up(values, key)
        addresses = value if isinstance(value, list) else [value]
        for name in plugins_named_in(
            address.removeprefix("-") for address in addresses if isinstance(address, str)
        ):
            named.setdefault(name, key)
    return named


def used_unasked(
    run_file: Layer | None = None, *, plugins: Sequence[str] = (), folder: Path | None = None
) -> dict[Kind, list[str]]:
    """By kind, the addresses of what a run may use whose file names nothing of that kind."""
    catalog, _ = open_to_explain(run_file, plugins=plugins, folder=folder)
    named = {"plugins": run_file.values.get("plugins")} if run_file else {}
    recipe = _recipe(catalog, plugins, named)
    used: dict[Kind, list[str]] = {"model": [], "data": [], "scheduler": ["core/linear"]}
    keys: dict[Kind, Key] = {
        "model": ("model",), "data": ("data",), "scheduler": ("schedule", "name"),
    }  # fmt: skip
    for kind, key in keys.items():
        default = catalog.default(kind) if kind != "scheduler" else None
        in_recipe = look_up(recipe.values, key) if recipe else None
        if default is not None:
            used[kind].append(default.address)
        if isinstance(in_recipe, str):
            try:
                used[kind].append(catalog.find(kind, in_recipe).address)
            except UnknownOffer:
                used[kind].append(in_recipe)
    return used


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

    def __init__(self, merged: Merged, catalog: Catalog, unusable: Unusable) -> None:
        self.merged = dataclasses.replace(
            merged, values=with_texts(RunSettings, merged.values, merged.texts)
        )
        self.catalog = catalog
        self.unusable = list(unusable)
        self.problems: list[Problem] = []

    def run(self, *, parts: bool) -> Configuration:
        values = self.merged.values
        _, problems = validate(RunSettings, values, place_of=self._place_of)
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
        self._refuse_mistakes()
        assert schedule is not None
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
            place_of=self._place_of,
        )
        return Configuration(
            settings,
            self.catalog,
            model,
            data,
            schedule,
            tuple(callbacks),
            self.merged.origins,
            self.merged.places,
        )

    def _refuse_mistakes(self) -> None:
        """Raise what is wrong, in the order of the files' lines and then of --set."""
        if len(self.unusable) == 1 and not self.problems:
            raise self.unusable[0][1]
        for key, error in self.unusable:
            # Which Python this is helps where a plugin is all that is wrong.
            hints = [line for line in error.hint if not line.startswith("this is ")]
            text = " ".join("; ".join((error.message, *hints)).split())
            where = self._place_of(key) if key else "--plugin"
            self.problems.append(Problem(where, join_key(key), text))
        if self.problems:
            raise SettingsError(in_order(self.problems, self.merged.places))

    def _place_of(self, key: Key) -> str:
        """Where a key was given; for one that was not, the run file where it could be."""
        place = self.merged.place_of(key)
        files = [place for place in self.merged.places if place != "--set"]
        return (files[-1] if files else "the run") if place == "default" else place

    def _problem(self, key: Key, text: str) -> None:
        self.problems.append(Problem(self._place_of(key), join_key(key), text))

    def _choose(self, kind: Kind, dotted: str, table: str, default: str = "") -> Choice | None:
        key = split_key(dotted)
        name = look_up(self.merged.values, key) or default
        if not isinstance(name, str):
            return None
        offer = self._find(kind, name, key) if name else self._default(kind, key)
        if offer is None:
            return None
        return self._with_settings(offer, self.merged.values.get(table, {}), (table,), named=key)

    def _default(self, kind: Kind, key: Key) -> Offer[Any] | None:
        offer = self.catalog.default(kind)
        if offer is None and not self.unusable:  # one of those may have it
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
            if kind == "scheduler" and _is_class_name(name):
                return self._find_in_torch(name, key)
            text = " ".join("; ".join((error.message, *error.hint)).split())
            if not (self._may_be_elsewhere(name) and "did you mean" not in text):
                self._problem(key, text)
            return None

    def _may_be_elsewhere(self, name: str) -> bool:
        """Whether a plugin that cannot be used may be the one that offers this."""
        owner, slash, _ = name.partition("/")
        known = [plugin.name for plugin in self.catalog.plugins]
        return bool(self.unusable) and not (slash and owner in known) and ":" not in name

    def _find_in_torch(self, name: str, key: Key) -> Offer[Any] | None:
        """A schedule of torch by its class's bare name."""
        known = torch_schedules()
        if name in known:
            return self.catalog.find("scheduler", f"{TORCH_SCHEDULES}:{name}")
        offers = self.catalog.offers("scheduler")
        near = closest(name, [*known, *(offer.spec.name for offer in offers)])
        suggestion = f"; did you mean '{near}'?" if near else ""
        listed = ", ".join([*(offer.address for offer in offers), *known])
        text = f"{TORCH_SCHEDULES} has no '{name}'{suggestion} (there are: {listed})"
        self._problem(key, text)
        return None

    def _with_settings(
        self, offer: Offer[Any], values: Any, at: Key, *, named: Key
    ) -> Choice | None:
        """The offer with its settings, checked.

        at     where its table stands
        named  the key that names the offer
        """
        if not isinstance(values, Mapping):
            return None
        try:
            cls = settings_class(offer)
        except PluginError as error:
            self.unusable.append((named, error))
            return None
        if cls is None:
            return Choice(offer, dict(values))
        values = with_texts(cls, values, self.merged.texts, at=at)
        instance, problems = validate(cls, values, place_of=self._place_of, at=at)
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
                key = ("data_settings", name)
                table[name] = value
                self.merged.origins[key] = f"from {source}"
                if (typed := self.merged.texts.get(split_key(source))) is not None:
                    self.merged.texts[key] = typed

    def callback_offers(self) -> dict[str, Offer[Any]]:
        """The defaults and the listed ones, less those taken away, by address in calling order."""
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
        return dict(sorted(offers.items(), key=lambda item: item[1].spec.last))

    def _choose_callbacks(self) -> list[Choice]:
        """The callbacks of the run, each with its settings."""
        offers = self.callback_offers()
        tables = self._callback_tables(offers)
        choices = []
        for address, offer in offers.items():
            spelling, table = tables.get(address, (address, {}))
            at = ("callback_settings", spelling)
            choices.append(self._with_settings(offer, table, at, named=("callbacks",)))
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
                self._with_settings(offer, table, key, named=key)  # for what is wrong in it
                continue
            tables[offer.address] = (name, table)
            for known in [known for known in self.merged.origins if known[:2] == key]:
                spelt_out = ("callback_settings", offer.address, *known[2:])
                self.merged.origins[spelt_out] = self.merged.origins[known]
        return tables


def in_order(problems: Sequence[Problem], places: Sequence[str]) -> list[Problem]:
    """The problems by layer and by line, and last what stands nowhere."""

    def rank(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.where.rpartition(":")
        if file in places and line.isdigit():
            return places.index(file), int(line)
        return (places.index(problem.where) if problem.where in places else len(places)), 0

    return sorted(problems, key=rank)


def _is_class_name(name: str) -> bool:
    return name[:1].isupper() and not set("/:.") & set(name)


def torch_schedules() -> list[str]:
    """The schedules that torch has, by the names of their classes. Imports torch."""
    from torch.optim import lr_scheduler

    return sorted(
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type)
        and issubclass(value, lr_scheduler.LRScheduler)
        and value is not lr_scheduler.LRScheduler
        and not name.startswith("_")
    )


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
