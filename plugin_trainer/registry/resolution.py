"""Decide from the spelling alone which plugin was meant; import nothing.

    dactbert                      an installed entry point
    ./plugins/dactbert            a folder with a pyproject.toml           (has / or \\, or is .)
    ./toy.py                      one file, plugin name `toy`              (ends in .py)
    my_lab.hooks, my_lab:plugin   an importable module or object           (has . or :)

There is no fall-back from one row to the next. Loading code because a folder of that name happens
to lie in the current folder would let a cloned repository run a stranger's code.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plugin_trainer.errors import PluginBroken, PluginDuplicate, PluginNotFound
from plugin_trainer.registry.discovery import (
    ALLOW_LIST,
    PLUGIN_GROUP,
    InstalledPlugin,
    hidden_plugins,
    installed_plugins,
)
from plugin_trainer.registry.names import CORE, LOCAL_MODULE, closest

Origin = Literal["core", "installed", "path", "module"]
CORE_MODULE = "plugin_trainer.callbacks.hooks"


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin is to be loaded from.

    target  "package.module" or "package.module:attribute" of its hooks
    path    where it lies on disk: a folder or a file; empty if that is not known
    """

    name: str
    target: str
    origin: Origin
    distribution: str
    version: str
    path: str

    def __str__(self) -> str:
        """The name with what tells it from others: "'toyvision' (ptrain-toyvision 0.1.0)"."""
        package = f"{self.distribution} {self.version}".strip()
        return f"'{self.name}' ({package or self.path or self.target})"

    @property
    def spelling(self) -> str:
        """What a user types to mean this source."""
        if self.origin == "path":
            return self.path
        return self.target if self.origin == "module" else self.name


def resolve(typed: str, *, folder: Path | None = None) -> PluginSource:
    """Find the plugin that was typed.

    folder  what relative paths are relative to; the current folder if not given

    Raises PluginNotFound, PluginDuplicate, and PluginBroken for a pyproject.toml that is not TOML.
    """
    base = Path.cwd() if folder is None else folder
    if typed.endswith(".py"):
        return _from_file(typed, base)
    if "/" in typed or "\\" in typed or typed in (".", ".."):
        return _from_folder(typed, base)
    if "." in typed or ":" in typed:
        return _from_module(typed)
    return core_source() if typed == CORE else _from_installed(typed, base)


def core_source() -> PluginSource:
    """The plugin that this package is itself."""
    from plugin_trainer import __version__

    path = Path(__file__).parents[1] / "callbacks"
    return PluginSource(CORE, CORE_MODULE, "core", "plugin-trainer", __version__, str(path))


# An installed entry point.


def _from_installed(typed: str, base: Path) -> PluginSource:
    installed = installed_plugins()
    found = [plugin for plugin in installed if plugin.name == typed]
    if not found:
        raise PluginNotFound(
            f"no installed plugin is called '{typed}'",
            plugin=typed,
            hint=_ways_out(typed, installed=installed, base=base),
        )
    if len(found) > 1:
        raise duplicate(typed, found)
    return source_of(found[0])


def source_of(plugin: InstalledPlugin) -> PluginSource:
    """An installed plugin as a source to load."""
    return PluginSource(
        name=plugin.name,
        target=plugin.target,
        origin="installed",
        distribution=plugin.distribution,
        version=plugin.version,
        path=plugin.location,
    )


def duplicate(name: str, claimants: list[InstalledPlugin]) -> PluginDuplicate:
    """The error for a name that several installed packages claim."""
    count = {2: "two", 3: "three"}.get(len(claimants), str(len(claimants)))
    labels = [f"{plugin.distribution} {plugin.version}".strip() for plugin in claimants]
    width = max(map(len, labels))
    lines = [
        f"{label:<{width}}   {plugin.location}"
        for label, plugin in zip(labels, claimants, strict=True)
    ]
    return PluginDuplicate(
        f"{count} installed packages claim the plugin name '{name}'",
        plugin=name,
        hint=[*lines, f"uninstall one, or point at a module: --plugin {claimants[0].target}"],
    )


def _ways_out(typed: str, *, installed: tuple[InstalledPlugin, ...], base: Path) -> list[str]:
    """What to do about a name that is not installed; never to install a package called that."""
    names = sorted({plugin.name for plugin in installed})
    hint = []
    if near := closest(typed, names):
        hint.append(f"did you mean '{near}'?")
    for place in (f"./{typed}", f"./plugins/{typed}"):
        if typed and (base / place / "pyproject.toml").is_file():
            hint.append(f"there is a folder {place}: to use it, write --plugin {place}")
    if any(plugin.name == typed for plugin in hidden_plugins()):
        hint.append(f"it is installed, but the environment variable {ALLOW_LIST} leaves it out")
    hint.append(f"installed here: {', '.join(names) or 'none'}")
    hint.append(f"this is {sys.executable}")
    return hint


# A folder or a file.


def _from_folder(typed: str, base: Path) -> PluginSource:
    root = (base / Path(typed).expanduser()).resolve()
    file = root / "pyproject.toml"
    if not file.is_file():
        what = "has no pyproject.toml" if root.is_dir() else "is not a folder"
        raise PluginNotFound(
            f"no plugin at '{typed}': {root} {what}",
            plugin=typed,
            hint="make one with: ptrain plugins new NAME" if root.is_dir() else (),
        )
    project = _read_project(file, typed=typed)
    points = project.get("entry-points", {}).get(PLUGIN_GROUP, {})
    if len(points) != 1:
        raise PluginNotFound(*_not_one_entry_point(typed, list(points)), plugin=typed)
    [(name, target)] = points.items()
    return PluginSource(
        name=name,
        target=str(target),
        origin="path",
        distribution=str(project.get("name", "")),
        version=str(project.get("version", "")),
        path=str(root),
    )


def _not_one_entry_point(typed: str, names: list[str]) -> tuple[str]:
    table = f'[project.entry-points."{PLUGIN_GROUP}"]'
    if names:
        return (f"'{typed}' holds several plugins ({', '.join(names)}): install it, then name one",)
    return (f"no plugin at '{typed}': its pyproject.toml has no {table}",)


def _read_project(file: Path, *, typed: str) -> dict[str, Any]:
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginBroken(
            f"the pyproject.toml of plugin '{typed}' cannot be read",
            plugin=typed,
            hint=f"{file}: {error}",
        ) from error
    return project if isinstance(project, dict) else {}


def _from_file(typed: str, base: Path) -> PluginSource:
    file = (base / Path(typed).expanduser()).resolve()
    if not file.is_file():
        raise PluginNotFound(f"no plugin at '{typed}': there is no file {file}", plugin=typed)
    return PluginSource(file.stem, LOCAL_MODULE + file.stem, "path", "", "", str(file))


# A module or an object in one.


def _from_module(typed: str) -> PluginSource:
    for plugin in installed_plugins():
        if typed == plugin.target:
            name, distribution, version = plugin.name, plugin.distribution, plugin.version
            return PluginSource(name, typed, "module", distribution, version, plugin.location)
    return PluginSource(_name_of_module(typed), typed, "module", "", "", "")


def _name_of_module(typed: str) -> str:
    """my_lab.hooks -> my_lab; ptrain_toy.hooks -> toy; my_lab.vision:plugin -> vision."""
    parts = typed.partition(":")[0].split(".")
    if len(parts) > 1 and parts[-1] in ("hooks", "plugin"):
        parts.pop()
    return parts[-1].removeprefix("ptrain_")
