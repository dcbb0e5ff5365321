"""What each setting means, read from its dataclass's docstring: the one place it is written."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from plugin_trainer.settings.render import in_one_line, to_values

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?P<gap>\s{2,})(?P<text>\S.*)")
_LONG_NAME = re.compile(r"\w+")
_REQUIRED = object()


@dataclass(frozen=True)
class Described:
    """One key of a settings dataclass.

    default  as TOML would have it; empty if the key is required or off by default
    value    the default as a TOML value; None where there is none, and for a table
    meaning  from the docstring; empty if that does not say
    """

    key: str
    default: str
    value: Any
    required: bool
    meaning: str


def describe(cls: type) -> list[Described]:
    """Every key of a settings dataclass, in order."""
    meanings = docstring_entries(_docstring(cls))
    described = []
    for field in dataclasses.fields(cls):
        default = _default_of(field)
        plain = None if default in (_REQUIRED, None) else _plain(default)
        described.append(
            Described(
                key=field.name,
                default="" if plain is None else _text(plain, of=default),
                value=None if isinstance(plain, dict) else plain,
                required=default is _REQUIRED,
                meaning=meanings.get(field.name, ""),
            )
        )
    return described


def summary(cls: type) -> str:
    """What a settings dataclass says of itself before it lists its keys."""
    return " ".join(_docstring(cls).partition("\n\n")[0].split())


def _docstring(cls: type) -> str:
    """Its own: a dataclass without one is given its signature, which says nothing."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def docstring_entries(docstring: str) -> dict[str, str]:
    """The "name  meaning" lines of a docstring, each with the indented lines that go on with it.

    A name that is too long for its column stands alone, its meaning on the lines below.
    """
    entries: dict[str, str] = {}
    current: list[str] = []
    column = 0
    for line, below in pairwise([*docstring.splitlines(), ""]):
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


def _plain(value: Any) -> Any:
    holder = dataclasses.make_dataclass("Holder", [("value", Any)])(value)
    return to_values(holder)["value"]


def _text(plain: Any, *, of: Any) -> str:
    if isinstance(plain, dict):
        return "" if dataclasses.is_dataclass(of) else "{}"
    return in_one_line(plain)
