"""What each setting means, read from its dataclass's docstring: the one place it is written."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from plugin_trainer.settings.render import to_values

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?P<gap>\s{2,})(?P<text>\S.*)")
_LONG_NAME = re.compile(r"\w+")
_REQUIRED = object()


@dataclass(frozen=True)
class Described:
    """One key of a settings dataclass.

    default  as TOML would have it; empty if the key is required or off by default
    meaning  from the docstring; empty if that does not say
    """

    key: str
    default: str
    required: bool
    meaning: str


def describe(cls: type) -> list[Described]:
    """Every key of a settings dataclass, in order."""
    meanings = docstring_entries(inspect.getdoc(cls) or "")
    described = []
    for field in dataclasses.fields(cls):
        default = _default_of(field)
        described.append(
            Described(
                key=field.name,
                default=_text(default),
                required=default is _REQUIRED,
                meaning=meanings.get(field.name, ""),
            )
        )
    return described


def docstring_entries(docstring: str) -> dict[str, str]:
    """The "name  meaning" lines of a docstring, each with the indented lines that go on with it.

    A name that is too long for its column stands alone, its meaning on the lines below.
    """
    entries: dict[str, str] = {}
    current: list[str] = []
    column = 0
    lines = docstring.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        match = _ENTRY.fullmatch(line)
        indent = len(below) - len(below.lstrip())
        if match:
            current = [name.strip() for name in match["names"].split(",")]
            column = match.start("text")
            entries.update(dict.fromkeys(current, match["text"]))
        elif _LONG_NAME.fullmatch(line) and indent:
            current, column = [line], indent
            entries[line] = ""
        elif current and line.startswith(" " * column) and line.strip():
            for name in current:
                entries[name] = f"{entries[name]} {line.strip()}".lstrip()
        else:
            current = []
    return entries


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _REQUIRED


def _text(value: Any) -> str:
    if value is _REQUIRED or value is None:
        return ""
    holder = dataclasses.make_dataclass("Holder", [("value", Any)])(value)
    plain = to_values(holder)["value"]
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, str):
        return f'"{plain}"'
    if isinstance(plain, dict):
        return "" if dataclasses.is_dataclass(value) else "{}"
    return str(plain)
