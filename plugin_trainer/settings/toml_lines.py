"""On which line of a TOML file each key stands: what tomllib reads but does not tell."""

from __future__ import annotations

import json
import re
import tomllib

Key = tuple[str, ...]

_PART = r"(?:[A-Za-z0-9_-]+|\"(?:[^\"\\]|\\.)*\"|'[^']*')"
_KEY = rf"\s*(?P<key>{_PART}(?:\s*\.\s*{_PART})*)\s*"
_HEADER = re.compile(rf"\s*\[{_KEY}\]\s*(#.*)?$")
_ARRAY_HEADER = re.compile(rf"\s*\[\[{_KEY}\]\]\s*(#.*)?$")
_ASSIGNMENT = re.compile(rf"{_KEY}=")
_BARE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# A number, a date, true or false, or a text without escapes: its line holds all of it.
_SCALAR = re.compile(r"\s*(?:[A-Za-z0-9+._:-]+|\"[^\"\\]*\"|'[^']*')\s*(#.*)?$")


def key_lines(text: str) -> dict[Key, int]:
    """Line numbers, counted from 1, of every table and key of a valid TOML text.

    A key inside an inline table or a multi-line array is found under the key that holds it. The
    tables of an array [[a]] are a.0, a.1 and so on.
    """
    lines: dict[Key, int] = {}
    last: dict[Key, int] = {}  # the number of the newest table of each array
    table: Key = ()
    rows = text.split("\n")  # not splitlines: TOML's lines end at nothing else
    number = 0
    while number < len(rows):
        row = rows[number]
        number += 1
        if header := _ARRAY_HEADER.match(row):
            array = _numbered(split_key(header["key"]), last)
            last[array] = last.get(array, -1) + 1
            table = (*array, str(last[array]))
            lines.setdefault(array, number)
            lines[table] = number
        elif header := _HEADER.match(row):
            table = _numbered(split_key(header["key"]), last, inside=True)
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(row):
            lines[table + split_key(assignment["key"])] = number
            if not _SCALAR.match(row, assignment.end()):
                number += _continuation(rows, start=number - 1)
    return lines


def _numbered(key: Key, last: dict[Key, int], *, inside: bool = False) -> Key:
    """The key with the number of the newest table after each array that it goes through."""
    numbered: Key = ()
    for place, part in enumerate(key, start=1):
        numbered = (*numbered, part)
        if numbered in last and (inside or place < len(key)):
            numbered = (*numbered, str(last[numbered]))
    return numbered


def split_key(dotted: str) -> Key:
    """The parts of a dotted key, quotes taken off: a."b/c".d -> (a, b/c, d)."""
    if _BARE.fullmatch(dotted):
        return tuple(dotted.split("."))
    nested = tomllib.loads(f"{dotted} = 0")
    parts: list[str] = []
    while isinstance(nested, dict):
        ((part, nested),) = nested.items()
        parts.append(part)
    return tuple(parts)


def join_key(key: Key) -> str:
    """The dotted spelling of a key, with quotes where TOML needs them."""
    # JSON's escapes are TOML's, too.
    return ".".join(
        part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
        for part in key
    )


def _continuation(rows: list[str], *, start: int) -> int:
    """How many more rows the value that begins in row `start` goes on for."""
    for extra in range(len(rows) - start):
        try:
            tomllib.loads("\n".join(rows[start : start + extra + 1]))
        except tomllib.TOMLDecodeError:
            continue
        return extra
    return 0
