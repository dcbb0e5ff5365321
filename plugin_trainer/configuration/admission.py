"""Which code a run or a study may have loaded: that of the user's own, and what is named again."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plugin_trainer.errors import UntrustedRun
from plugin_trainer.ownership import is_own
from plugin_trainer.registry.discovery import installed_plugins
from plugin_trainer.settings.layers import Layer
from plugin_trainer.settings.render import flatten

_MODULE_ATTRIBUTE = re.compile(r"[+-]?[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def admit(
    folder: Path,
    run_file: Layer,
    *,
    overrides: Layer | None = None,
    plugins: Collection[str] = (),
    trust: bool = False,
) -> None:
    """Refuse a run folder that names code, unless this user made it or named the same code again.

    Installed plugins, and what torch and torchmetrics have by name, are not code of the folder's.

    overrides, plugins  what was typed beside the folder
    trust               the user has said so

    Raises UntrustedRun. It is called before anything that the folder names is imported.
    """
    if trust:
        return
    typed = {*plugins, *_texts(overrides.values if overrides else {})}
    code = [(key, name) for key, name in code_named(run_file.values) if name not in typed]
    if code and not is_own(folder):
        raise untrusted(folder, code)


def untrusted(folder: Path, code: Iterable[tuple[str, str]]) -> UntrustedRun:
    """What to say of a folder that names this code, as `code_named` gives it."""
    return UntrustedRun(
        f"{folder} names code that is not installed, and was not made by you on this machine",
        hint=[
            *(f"{key}: {name}" for key, name in code),
            "opening it runs that code. If you trust it: --trust, in Python trust=True",
        ],
    )


def code_named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every setting that names code outside of installed plugins: its key and what it names.

    A text that looks like package.module:attribute counts wherever it stands, for plugins too take
    such names among their settings.
    """
    installed = {plugin.name for plugin in installed_plugins()}
    named = values.get("plugins", [])
    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str) and name not in installed:
            yield "plugins", name
    for key, value in flatten(values).items():
        for text in _texts(value):
            if _MODULE_ATTRIBUTE.fullmatch(text) and not key.startswith("plugins"):
                yield key, text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)
