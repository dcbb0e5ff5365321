"""The plugins that a run named, and how what they offer is found: plugin/name -> Offer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar

from plugin_trainer.errors import PluginDuplicate, PluginError, UnknownOffer
from plugin_trainer.registry.discovery import installed_plugins
from plugin_trainer.registry.loading import LoadedPlugin, load
from plugin_trainer.registry.names import CORE, TARGET, closest
from plugin_trainer.registry.resolution import PluginSource, core_source, resolve
from plugin_trainer.specs import (
    CallbackSpec,
    DataSpec,
    FileSpec,
    ModelSpec,
    RecipeSpec,
    SchedulerSpec,
    SpaceSpec,
    Spec,
)

Kind = Literal["model", "data", "callback", "scheduler", "recipe", "space"]
S = TypeVar("S", bound="Spec | FileSpec", covariant=True)


@dataclass(frozen=True)
class _KindWords:
    """How a kind is called, where a plugin keeps it, and where a user names it."""

    attribute: str
    noun: str
    plural: str
    spec: Any
    key: str


KINDS: dict[Kind, _KindWords] = {
    "model": _KindWords("models", "model", "models", ModelSpec, "--set model="),
    "data": _KindWords("data", "data module", "data modules", DataSpec, "--set data="),
    "callback": _KindWords("callbacks", "callback", "callbacks", CallbackSpec, "callbacks = "),
    "scheduler": _KindWords(
        "schedulers", "scheduler", "schedulers", SchedulerSpec, "--set schedule.name="
    ),
    "recipe": _KindWords("recipes", "recipe", "recipes", RecipeSpec, ""),
    "space": _KindWords("spaces", "search space", "search spaces", SpaceSpec, ""),
}


@dataclass(frozen=True)
class Offer(Generic[S]):
    """One thing that can be built, and the plugin it comes from.

    plugin  None for a class that was named by its dotted path
    """

    plugin: LoadedPlugin | None
    spec: S

    @property
    def address(self) -> str:
        """What a run file calls it: plugin/name, or the dotted path."""
        return f"{self.plugin.name}/{self.spec.name}" if self.plugin else self.spec.name

    @property
    def owner(self) -> str:
        """The plugin's name; empty for a dotted path."""
        return self.plugin.name if self.plugin else ""


@dataclass(frozen=True)
class Catalog:
    """The active plugins, core first, then in the order in which they were named.

    notices  what a user should be told about how their plugins were found, one line each
    """

    plugins: tuple[LoadedPlugin, ...]
    notices: tuple[str, ...] = field(default=())

    def offers(self, kind: Kind) -> tuple[Offer[Any], ...]:
        """Everything of this kind that the active plugins offer."""
        return tuple(
            Offer(plugin, spec)
            for plugin in self.plugins
            for spec in getattr(plugin, KINDS[kind].attribute)
        )

    def default(self, kind: Kind) -> Offer[Any] | None:
        """What a run uses that names nothing of this kind.

        A plugin's default, or the only thing of the kind that it has. Core has no say, and of two
        plugins that have one neither wins.
        """
        found = []
        for plugin in self.plugins:
            specs = getattr(plugin, KINDS[kind].attribute)
            chosen = [spec for spec in specs if spec.default] or specs
            if plugin.source.origin != "core" and len(chosen) == 1:
                found.append(Offer(plugin, chosen[0]))
        return found[0] if len(found) == 1 else None

    def find(self, kind: Kind, name: str) -> Offer[Any]:
        """The offer that a user wrote: "plugin/name", a bare name, or "package.module:Class".

        Raises UnknownOffer.
        """
        if ":" in name and kind not in ("recipe", "space"):
            return _ad_hoc(kind, name)
        offers = self.offers(kind)
        found = [offer for offer in offers if name in (offer.address, offer.spec.name)]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            addresses = [offer.address for offer in found]
            raise UnknownOffer(
                f"several plugins offer a {KINDS[kind].noun} called '{name}'",
                hint=f"write one of: {', '.join(addresses)}",
            )
        raise self._unknown(kind, name, offers)

    def _unknown(self, kind: Kind, name: str, offers: tuple[Offer[Any], ...]) -> UnknownOffer:
        words = KINDS[kind]
        owner, slash, bare = name.rpartition("/")
        names = [plugin.name for plugin in self.plugins]
        if slash and owner not in names:
            near = closest(owner, names)
            return UnknownOffer(
                f"no plugin '{owner}' takes part in this run, so there is no {words.noun} '{name}'",
                hint=[
                    *([f"did you mean '{near}/{bare}'?"] if near else []),
                    f"taking part: {', '.join(names) or 'none'}",
                ],
            )
        among = [offer for offer in offers if not slash or offer.owner == owner]
        where = f" in plugin '{owner}'" if slash else ""
        return UnknownOffer(
            f"no {words.noun} '{bare}'{where}",
            hint=[
                *self._other_kind(kind, name),
                _suggestion(bare, among, subject="it offers" if slash else "there is", words=words),
                *_dotted_path_hint(words),
            ],
        )

    def _other_kind(self, kind: Kind, name: str) -> list[str]:
        """What to say if the name is that of something else."""
        return [
            f"'{offer.address}' is a {KINDS[other].noun}"
            for other in KINDS
            if other != kind
            for offer in self.offers(other)
            if name in (offer.address, offer.spec.name)
        ][:1]


def open_catalog(names: Sequence[str], *, folder: Path | None = None) -> Catalog:
    """Load the plugins of a run, core first.

    names   as typed; one plugin under two spellings is loaded once
    folder  what relative paths are relative to; the current folder if not given

    Raises what `resolve` and `load` raise.
    """
    sources, notices = _sources(names, folder)
    return Catalog(plugins=(_core(), *(load(source) for source in sources)), notices=tuple(notices))


def with_installed(catalog: Catalog) -> Catalog:
    """The catalog and, behind its own, every other installed plugin that can be loaded."""
    known = {plugin.name for plugin in catalog.plugins}
    more = []
    for name in dict.fromkeys(plugin.name for plugin in installed_plugins()):
        if name not in known:
            try:
                more.append(load(resolve(name)))
            except PluginError:
                continue  # `ptrain plugins` says why
    return Catalog((*catalog.plugins, *more), catalog.notices)


def plugins_named_in(addresses: Iterable[str]) -> list[str]:
    """The plugins that addresses imply, in order: "dactbert/base" implies dactbert."""
    implied = [
        address.partition("/")[0]
        for address in addresses
        if re.fullmatch(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*", address)
    ]
    return [name for name in dict.fromkeys(implied) if name != CORE]


def _sources(names: Sequence[str], folder: Path | None) -> tuple[list[PluginSource], list[str]]:
    """One source a plugin. A path or a module wins over an installed plugin of the same name."""
    typed = [name for name in dict.fromkeys(names) if name != CORE]
    pointed = {name: resolve(name, folder=folder) for name in typed if not _is_plain(name)}
    by_name: dict[str, PluginSource] = {}
    for source in pointed.values():
        other = by_name.setdefault(source.name, source)
        if (other.target, other.path) != (source.target, source.path):
            raise PluginDuplicate(
                f"two of the plugins named are called '{source.name}'",
                plugin=source.name,
                hint=[other.spelling, source.spelling],
            )
    sources: dict[str, PluginSource] = {}
    for name in typed:
        source = pointed.get(name) or by_name.get(name) or resolve(name, folder=folder)
        sources.setdefault(source.name, source)
    return list(sources.values()), _notices(by_name)


def _is_plain(name: str) -> bool:
    return not set("/\\.:") & set(name)


def _notices(pointed: dict[str, PluginSource]) -> list[str]:
    if not pointed:
        return []
    return [
        f"plugin '{plugin.name}' is taken from {pointed[plugin.name].path}, "
        f"not from the installed {plugin.distribution} {plugin.version}"
        for plugin in installed_plugins()
        if plugin.name in pointed and pointed[plugin.name].origin == "path"
    ]


@cache
def _core() -> LoadedPlugin:
    """This package's own plugin; empty in a checkout that does not have it."""
    source = core_source()
    if not Path(source.path, "hooks.py").is_file():
        return LoadedPlugin(source=source, module=SimpleNamespace())
    return load(source)


def _ad_hoc(kind: Kind, target: str) -> Offer[Any]:
    """An offer of a class that no plugin lists."""
    if not TARGET.fullmatch(target):
        raise UnknownOffer(
            f"'{target}' is not the path of a class", hint="write it as package.module:Class"
        )
    return Offer(None, KINDS[kind].spec(name=target, target=target))


def _suggestion(bare: str, offers: Sequence[Offer[Any]], *, subject: str, words: _KindWords) -> str:
    if not offers:
        return f"{subject} no {words.noun}"
    by_name = {offer.spec.name: offer.address for offer in offers}
    listed = ", ".join(by_name if subject == "it offers" else [offer.address for offer in offers])
    subject = "there are" if subject == "there is" and len(offers) > 1 else subject
    near = closest(bare, by_name) or (next(iter(by_name)) if len(by_name) == 1 else None)
    if near is None:
        return f"{subject}: {listed}"
    return f"did you mean '{by_name[near]}'?   ({subject}: {listed})"


def _dotted_path_hint(words: _KindWords) -> list[str]:
    return [f"any class works too: {words.key}package.module:Class"] if words.key else []
