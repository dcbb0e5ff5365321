"""How the command line prints: tables in plain text, JSON, and errors with their hints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

from plugin_trainer.errors import PtrainError

WIDTH = 80
_GAP = 2
_NARROWEST = 8


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], *, width: int = WIDTH) -> str:
    """Rows under headers, aligned; the widest columns are wrapped until the table fits."""
    cells = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(widths) + _GAP * (len(widths) - 1) > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return "\n".join(line for row in cells for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    """One row of the table, on as many lines as its longest cell needs."""
    wrapped = [
        textwrap.wrap(cell, width, break_on_hyphens=False) or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    for number in range(max(map(len, wrapped))):
        parts = [
            (lines[number] if number < len(lines) else "").ljust(width)
            for lines, width in zip(wrapped, widths, strict=True)
        ]
        yield (" " * _GAP).join(parts).rstrip()


def facts(rows: Iterable[tuple[str, str]], *, width: int = WIDTH) -> str:
    """What is known of one thing: labels, and texts wrapped beside them; empty ones left out."""
    kept = [(label, text) for label, text in rows if text]
    column = max((len(label) for label, _ in kept), default=0)
    widths = (column, width - column - 2 * _GAP)
    lines = [line for row in kept for line in _lines(row, widths)]
    return "\n".join(f"{'':<{_GAP}}{line}" for line in lines)


def emit_json(value: Any) -> None:
    """Print a value as JSON, for programs that read what `ptrain` lists."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_error(message: str, hints: Iterable[str] = ()) -> None:
    """An error and what to do about it, on stderr."""
    lines = [f"error: {message}", *(line for hint in hints for line in hint.splitlines())]
    click.echo("\n  ".join(lines), err=True)


def as_json(error: PtrainError) -> dict[str, Any]:
    """An error as a value in a listing."""
    return {"message": error.message, "hint": list(error.hint)}
