"""Settings as plain values and as TOML text, with the origin of each key beside it if asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from plugin_trainer.cadence import Span
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key, join_key, key_lines

# A cadence that is off must be written down: leaving it out would mean the default.
_NEVER = ("evaluate", "save", "log")


def to_values(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a table of TOML values; what is None is left out."""
    never = _NEVER if isinstance(settings, RunSettings) else ()
    values = {
        field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }
    return {
        name: "never" if value is None else value
        for name, value in values.items()
        if value is not None or name in never
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Span)):
        return to_values(value)
    if isinstance(value, (Span, Path)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def to_toml(values: Mapping[str, Any], *, origins: Mapping[Key, str] | None = None) -> str:
    """The table as TOML. With origins, each line ends with the place its value came from."""
    text = tomli_w.dumps(values, multiline_strings=False)
    if origins is None:
        return text
    rows = text.removesuffix("\n").split("\n")
    notes = {number: key for key, number in key_lines(text).items()}
    width = min(44, max((len(row) for row in rows), default=0))
    for number, key in notes.items():
        row = rows[number - 1]
        if not row.startswith("["):
            rows[number - 1] = f"{row:<{width}}  # {_origin(origins, key)}"
    return "\n".join(rows) + "\n"


def _origin(origins: Mapping[Key, str], key: Key) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in origins:
            return origins[key[:length]]
    return "default"


def in_one_line(value: Any) -> str:
    """A TOML value as it may stand behind a key: text in quotes, a table in braces."""
    if isinstance(value, Mapping):
        pairs = [f"{join_key((name,))} = {in_one_line(item)}" for name, item in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_one_line, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def flatten(values: Mapping[str, Any], *, at: Key = ()) -> dict[str, Any]:
    """Every leaf of a table under its dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = (*at, name)
        if isinstance(value, Mapping):
            flat.update(flatten(value, at=key))
        else:
            flat[join_key(key)] = value
    return flat
