"""`ptrain plugins`: what is installed, what it offers, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from plugin_trainer.cli.new import new
from plugin_trainer.cli.printing import as_json, echo, emit_json, table
from plugin_trainer.errors import PluginIncompatible, PtrainError
from plugin_trainer.registry.blame import in_words
from plugin_trainer.registry.catalog import KINDS, Catalog, Offer
from plugin_trainer.registry.discovery import (
    ALLOW_LIST,
    InstalledPlugin,
    hidden_plugins,
    installed_plugins,
)
from plugin_trainer.registry.loading import LoadedPlugin, load
from plugin_trainer.registry.resolution import duplicate, resolve, source_of

as_json_option = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@dataclass(frozen=True)
class Found:
    """An installed plugin, and either its offers or why it cannot be used."""

    installed: InstalledPlugin
    plugin: LoadedPlugin | None
    error: PtrainError | None
    state: str


@click.group(invoke_without_command=True)
@as_json_option
@click.pass_context
def plugins(ctx: click.Context, json_: bool) -> None:
    """List, check and start plugins. Without a command: list."""
    if ctx.invoked_subcommand is None:
        _print_list(json_=json_)


plugins.add_command(new)


@plugins.command("list")
@as_json_option
def list_(json_: bool) -> None:
    """List the installed plugins, the broken ones too."""
    _print_list(json_=json_)


@plugins.command()
@click.argument("name")
@as_json_option
def show(name: str, json_: bool) -> None:
    """Show what the plugin NAME offers: a name, a path, a module, or core."""
    plugin = load(resolve(name))
    if json_:
        emit_json(_as_json(plugin))
        return
    source = plugin.source
    echo(f"{plugin.name} {source.version}".rstrip())
    echo(f"  from {source.distribution or source.target}, {source.path}")
    offers = [(kind, offer) for kind in KINDS for offer in Catalog((plugin,)).offers(kind)]
    rows = [
        (KINDS[kind].noun, offer.address, offer.spec.summary, _default(offer.spec))
        for kind, offer in offers
    ]
    echo(table(rows, ("kind", "name", "what it is", "default")))
    for kind, offer in offers:
        if kind not in ("recipe", "space"):
            _show_settings(offer)


def _show_settings(offer: Offer[Any]) -> None:
    """Every key of an offer's settings, with its default and meaning."""
    from plugin_trainer.registry.building import settings_class
    from plugin_trainer.settings.describe import describe

    cls = settings_class(offer)
    keys = describe(cls) if cls is not None else []
    if not keys:
        return
    echo(f"\n{offer.address} takes")
    rows = [(key.key, "required" if key.required else key.default, key.meaning) for key in keys]
    echo(table(rows, ("key", "default", "meaning")))


@plugins.command()
@click.argument("names", nargs=-1)
@as_json_option
def check(names: tuple[str, ...], json_: bool) -> int:
    """Import everything that plugins offer; exit with 1 if anything is wrong.

    Without NAMES every installed plugin is checked. A name may be a path or a module.
    """
    results = _check_all(names)
    wrong = sum(bool(problems) for _, problems in results)
    if json_:
        emit_json([{"name": name, "problems": problems} for name, problems in results])
        return int(wrong > 0)
    for name, problems in results:
        echo(f"{name}: {'ok' if not problems else 'wrong'}")
        for line in problems:
            echo(f"  {line}")
    if not results:
        echo("no plugins are installed")
    return int(wrong > 0)


def survey() -> list[Found]:
    """Load every installed plugin; what is wrong with one stays its own."""
    installed = installed_plugins()
    by_name: dict[str, list[InstalledPlugin]] = {}
    for plugin in installed:
        by_name.setdefault(plugin.name, []).append(plugin)
    return [_found(plugin, by_name[plugin.name]) for plugin in installed]


def _found(installed: InstalledPlugin, claimants: list[InstalledPlugin]) -> Found:
    if len(claimants) > 1:
        return Found(installed, None, duplicate(installed.name, claimants), "duplicate")
    try:
        return Found(installed, load(source_of(installed)), None, "ok")
    except PluginIncompatible as error:
        return Found(installed, None, error, "incompatible")
    except PtrainError as error:
        return Found(installed, None, error, "broken")


# Listing.


def _print_list(*, json_: bool) -> None:
    found = survey()
    if json_:
        emit_json([_row_as_json(row) for row in found])
        return
    if found:
        headers = ("name", "version", "state", "import", "offers", "from")
        echo(table([_row(row) for row in found], headers))
    else:
        echo("no plugins are installed; start one with: ptrain plugins new NAME")
    broken = [row.installed.name for row in found if row.error]
    if broken:
        one = f" {broken[0]}" if len(set(broken)) == 1 else ""
        echo(f"{len(broken)} of {len(found)} plugins cannot be used: ptrain plugins check{one}")
    if hidden := hidden_plugins():
        echo(f"{ALLOW_LIST} hides: {', '.join(plugin.name for plugin in hidden)}")


def _row(row: Found) -> tuple[str, ...]:
    installed = row.installed
    import_ms = f"{row.plugin.import_ms:.0f} ms" if row.plugin else ""
    offers = _count_offers(row.plugin) if row.plugin else _reason(row)
    place = f"{_near(installed.location)} (editable)" if installed.editable else ""
    return (
        installed.name,
        installed.version,
        row.state,
        import_ms,
        offers,
        place or installed.distribution,
    )


def _count_offers(plugin: LoadedPlugin) -> str:
    counts = []
    for words in KINDS.values():
        if count := len(getattr(plugin, words.attribute)):
            noun = words.noun if count == 1 else words.plural
            counts.append(f"{count} {noun}")
    return ", ".join(counts) or "hooks only"


def _reason(row: Found) -> str:
    """Why a plugin cannot be used, in a few words."""
    if row.error is None or row.state == "duplicate":
        return "its name is claimed twice"
    if row.error.__cause__ is not None:
        return in_words(row.error.__cause__)
    return row.error.message


def _near(location: str) -> str:
    """The path relative to the current folder if it lies in it."""
    path = Path(location)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else location


def _row_as_json(row: Found) -> dict[str, Any]:
    installed = row.installed
    return {
        "name": installed.name,
        "version": installed.version,
        "state": row.state,
        "distribution": installed.distribution,
        "location": installed.location,
        "editable": installed.editable,
        "import_ms": round(row.plugin.import_ms, 2) if row.plugin else None,
        "offers": _offers_as_json(row.plugin) if row.plugin else None,
        "error": as_json(row.error) if row.error else None,
    }


def _offers_as_json(plugin: LoadedPlugin) -> dict[str, list[str]]:
    return {
        words.attribute: [spec.name for spec in getattr(plugin, words.attribute)]
        for words in KINDS.values()
    }


# Showing and checking.


def _default(spec: Any) -> str:
    return "yes" if spec.default else ""


def _as_json(plugin: LoadedPlugin) -> dict[str, Any]:
    from dataclasses import asdict

    specs = {}
    for words in KINDS.values():
        found = getattr(plugin, words.attribute)
        specs[words.attribute] = [_spec_as_json(spec) for spec in found]
    return {**asdict(plugin.source), "import_ms": round(plugin.import_ms, 2), **specs}


def _spec_as_json(spec: Any) -> dict[str, Any]:
    return {
        key: dict(value) if key == "defaults_from" else value for key, value in vars(spec).items()
    }


def _check_all(names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    from plugin_trainer.registry.checking import problems_of

    typed = names or tuple(dict.fromkeys(plugin.name for plugin in installed_plugins()))
    results = []
    for name in typed:
        try:
            plugin = load(resolve(name))
            problems = problems_of(plugin)
            # A settings class that is broken is told already.
            told = " ".join(problems)
            problems += [
                f"{recipe}: {text}"
                for recipe, text in _mistakes_in_files(plugin, typed=name)
                if text.partition(";")[0] not in told
            ]
        except PtrainError as error:
            problems = [error.message, *error.hint]
        results.append((name, problems))
    return results


def _mistakes_in_files(plugin: LoadedPlugin, *, typed: str) -> list[tuple[str, str]]:
    """What is wrong in recipes and search spaces that a plugin ships, but for what a user must
    give.
    """
    from functools import partial

    from plugin_trainer.configuration import configure
    from plugin_trainer.errors import SettingsError
    from plugin_trainer.registry.loading import path_of
    from plugin_trainer.settings.layers import read_toml
    from plugin_trainer.specs import SpaceSpec
    from plugin_trainer.tuning.checking import refuse_wrong_space

    found = []
    for spec in (*plugin.recipes, *plugin.spaces):
        noun = "search space" if isinstance(spec, SpaceSpec) else "recipe"
        name = f"{noun} '{spec.name}'"
        try:
            layer = read_toml(path_of(plugin, spec), where=spec.file)
        except PtrainError:
            continue  # told with the offers
        try:
            configuration = configure(layer, plugins=[typed])
            if isinstance(spec, SpaceSpec):
                refuse_wrong_space(configuration, partial(configure, layer, plugins=[typed]))
        except SettingsError as error:
            found += [
                (name, str(problem))
                for problem in error.problems
                if not problem.text.startswith("is required")
            ]
        except PtrainError as error:
            found.append((name, "; ".join((error.message, *error.hint))))
    return found
