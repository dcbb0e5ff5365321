"""How the command line prints: tables in plain text, JSON, and errors with their hints."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

from plugin_trainer.errors import PtrainError

WIDTH = 80
_GAP = 2
_NARROWEST = 8
_READABLE = 24
"""Prose is not wrapped more narrowly to save a name from it."""
_LONGEST = 1000
"""Characters of a line of an error: what it quotes may be a whole file."""

# Control characters but tabs and line ends, overrides of the writing direction, and halves of
# characters, which cannot be printed.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with what could act on a terminal as an escape: \\x1b[2J."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a text and a line end; what could act on the terminal, as an escape."""
    click.echo(printable(str(text)), err=err)


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], *, width: int = WIDTH) -> str:
    """Rows under headers, aligned; the widest columns are wrapped until the table fits: between
    words, where that does not do within names, at their / _ and ., and at last anywhere.
    """
    cells = [list(headers), *([printable(str(cell)) for cell in row] for row in rows)]
    columns = [" ".join(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for split, least in ((str.split, _READABLE), (_pieces, _NARROWEST), (list, _NARROWEST)):
        floors = [max([least, *map(len, split(column))]) for column in columns]
        while sum(widths) + _GAP * (len(widths) - 1) > width:
            spare = [
                size if size > floor else 0 for size, floor in zip(widths, floors, strict=True)
            ]
            if not any(spare):
                break
            widths[spare.index(max(spare))] -= 1
    return "\n".join(line for row in cells for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    """One row of the table, on as many lines as its longest cell needs."""
    wrapped = [
        textwrap.wrap(_breakable(cell, width), width, break_on_hyphens=False) or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    for number in range(max(map(len, wrapped))):
        parts = [
            (lines[number] if number < len(lines) else "").ljust(width)
            for lines, width in zip(wrapped, widths, strict=True)
        ]
        yield (" " * _GAP).join(parts).rstrip()


def _pieces(text: str) -> list[str]:
    """What a text may be broken into: words, and names behind each / _ and dot."""
    return re.findall(r"[^\s/_.]*[/_.]+|[^\s/_.]+", text)


def _breakable(text: str, width: int) -> str:
    """The text with spaces in words that are too long for a line, where they may be broken."""
    words = []
    for word in text.split(" "):
        lines = [""]
        pieces = _pieces(word) if len(word) > width else [word]
        for part in (part for piece in pieces for part in textwrap.wrap(piece, width)):
            if lines[-1] and len(lines[-1] + part) > width:
                lines.append("")
            lines[-1] += part
        words += lines
    return " ".join(words)


def facts(rows: Iterable[tuple[str, str]], *, width: int = WIDTH) -> str:
    """What is known of one thing: labels, and texts wrapped beside them; empty ones left out."""
    kept = [(label, printable(text)) for label, text in rows if text]
    column = max((len(label) for label, _ in kept), default=0)
    widths = (column, width - column - 2 * _GAP)
    lines = [line for row in kept for line in _lines(row, widths)]
    return "\n".join(f"{'':<{_GAP}}{line}" for line in lines)


def emit_json(value: Any) -> None:
    """Print a value as JSON, for programs that read what `ptrain` lists."""
    click.echo(json_text(value, indent=2))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON: letters of every script as they are, what is unprintable escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_error(message: str, hints: Iterable[str] = ()) -> None:
    """An error and what to do about it, on stderr."""
    lines = [f"error: {message}", *(line for hint in hints for line in hint.splitlines())]
    click.echo("\n  ".join(shortened(printable(line)) for line in lines), err=True)


def shortened(line: str) -> str:
    """The line, its middle left out where it is too long to be read."""
    kept = _LONGEST // 2
    left_out = len(line) - 2 * kept
    return line if left_out <= 0 else f"{line[:kept]} ({left_out} characters) {line[-kept:]}"


def as_json(error: PtrainError) -> dict[str, Any]:
    """An error as a value in a listing."""
    return {"message": error.message, "hint": list(error.hint)}
