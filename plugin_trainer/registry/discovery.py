"""Find the installed plugins and plugin commands from entry-point metadata; import none of them.

PTRAIN_PLUGINS=a,b names the only ones that may be seen; empty hides all of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import (
    Distribution,
    EntryPoint,
    EntryPoints,
    distributions,
    entry_points,
)
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from plugin_trainer.registry.names import top_package

PLUGIN_GROUP = "plugin_trainer.plugins"
COMMAND_GROUP = "plugin_trainer.commands"
ALLOW_LIST = "PTRAIN_PLUGINS"


@dataclass(frozen=True)
class InstalledPlugin:
    """One entry point of an installed distribution.

    target    "package.module" or "package.module:attribute" of the hook module
    location  the folder its code is in; the project folder if the install is editable
    """

    name: str
    target: str
    distribution: str
    version: str
    location: str
    editable: bool


@dataclass(frozen=True)
class InstalledCommand:
    """A click command that a distribution adds under its plugin's name."""

    name: str
    target: str
    distribution: str
    version: str


def installed_plugins() -> tuple[InstalledPlugin, ...]:
    """Every plugin entry point of this environment that may be seen, duplicates included."""
    return _sorted(_plugin(entry) for entry in _entry_points(PLUGIN_GROUP) if _allowed(entry.name))


def hidden_plugins() -> tuple[InstalledPlugin, ...]:
    """The installed plugins that PTRAIN_PLUGINS leaves out."""
    return _sorted(
        _plugin(entry) for entry in _entry_points(PLUGIN_GROUP) if not _allowed(entry.name)
    )


def installed_commands() -> tuple[InstalledCommand, ...]:
    """Every plugin command of this environment that may be seen, duplicates included."""
    found = (
        InstalledCommand(entry.name, entry.value, *_distribution(entry.dist))
        for entry in _entry_points(COMMAND_GROUP)
        if _allowed(entry.name)
    )
    return tuple(sorted(found, key=lambda command: (command.name, command.distribution)))


def _entry_points(group: str) -> EntryPoints:
    return _read(tuple(_metadata())).select(group=group)


@lru_cache(maxsize=1)
def _read(_: tuple[tuple[str, int, int], ...]) -> EntryPoints:
    """Read a hundred packages' metadata: 10 ms, and each command asks twice."""
    try:
        return cast(EntryPoints, entry_points())  # what it gives while none are selected
    except Exception:  # of one damaged package, whatever it is
        return EntryPoints(entry for found in distributions() for entry in _readable(found))


def _readable(distribution: Distribution) -> list[EntryPoint]:
    """A distribution's entry points; none where its file is damaged."""
    try:
        return list(distribution.entry_points)
    except Exception:
        return []


def _metadata() -> Iterator[tuple[str, int, int]]:
    """What changes where a package comes, goes or gets other entry points."""
    for folder in sys.path:
        yield folder, 0, 0  # which may be an archive that holds packages
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if entry.name.endswith((".dist-info", ".egg-info")):
                    with suppress(OSError):
                        about = os.stat(f"{entry.path}/entry_points.txt")  # noqa: PTH116
                        yield entry.path, about.st_mtime_ns, about.st_size


def _sorted(plugins: Iterable[InstalledPlugin]) -> tuple[InstalledPlugin, ...]:
    return tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)))


def _allowed(name: str) -> bool:
    listed = os.environ.get(ALLOW_LIST)
    return listed is None or name in {part.strip() for part in listed.split(",")}


def _plugin(entry: EntryPoint) -> InstalledPlugin:
    distribution, version = _distribution(entry.dist)
    project = _editable_project(entry.dist)
    return InstalledPlugin(
        name=entry.name,
        target=entry.value,
        distribution=distribution,
        version=version,
        location=project or _location(entry),
        editable=bool(project),
    )


def _distribution(distribution: Distribution | None) -> tuple[str, str]:
    """Its name and version; metadata that a failed uninstall left half behind has neither."""
    if distribution is None:
        return "", ""
    try:
        metadata = distribution.metadata.json
    except FileNotFoundError:  # so says importlib_metadata, which takes over once it is imported
        return "", ""
    return str(metadata.get("name", "")), str(metadata.get("version", ""))


def _location(entry: EntryPoint) -> str:
    if entry.dist is None:
        return ""
    root = Path(str(entry.dist.locate_file("")))
    package = root / top_package(entry.value)
    return str(package if package.is_dir() else root)


def _editable_project(distribution: Distribution | None) -> str:
    """The project folder of an editable install (PEP 610), empty for any other."""
    text = distribution.read_text("direct_url.json") if distribution else None
    if not text:
        return ""
    try:
        record = json.loads(text)
        editable = bool(record.get("dir_info", {}).get("editable"))
        url = urlsplit(record["url"])
    except (ValueError, KeyError, AttributeError):
        return ""
    return str(Path(unquote(url.path))) if editable and url.scheme == "file" else ""
