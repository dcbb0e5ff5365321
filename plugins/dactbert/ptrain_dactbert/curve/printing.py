"""The tables of a comparison on a terminal of 80 columns, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

from plugin_trainer.cli.printing import table as aligned
from ptrain_dactbert.curve.tables import tables

Figures = Mapping[str, Any]


def for_terminal(document: Figures) -> str:
    """The tables, at most 80 columns wide."""
    parts = [fill(_headline(document), width=80)]
    for table in tables(document):
        note = f"\n{fill(table.note, width=80)}" if table.note else ""
        parts.append(f"{table.title}\n{aligned(table.rows, table.headers)}{note}")
    parts += [fill(line, width=80) for line in _remarks(document)]
    return "\n\n".join(parts)


def for_markdown(document: Figures, *, pictures: Sequence[str] = ()) -> str:
    """The same as a Markdown page.

    pictures  the light and the dark one
    """
    parts = [f"# Early exit: {document['recipe']['label']}", _headline(document)]
    if pictures:
        light, dark = pictures
        parts.append(
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="Accuracy and agreement by mean exit block and by '
            'milliseconds"></picture>'
        )
    for table in tables(document):
        lines = [_line(table.headers), _line(["---"] * len(table.headers))]
        lines += [_line(row) for row in table.rows]
        parts.append(f"## {table.title}\n\n" + "\n".join(lines))
        parts += [table.note] if table.note else []
    return "\n\n".join([*parts, *_remarks(document)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _headline(document: Figures) -> str:
    recipe = document["recipe"]
    runs = recipe["runs"]
    names = ", ".join(f"{run['name']} (seed {run['seed']})" for run in runs)
    precisions = ", ".join(sorted({run["precision"] for run in runs}))
    what = (
        "means with the least and the greatest of the seeds in brackets"
        if len(runs) > 1
        else "one run, 95 % intervals (Wilson) in brackets"
    )
    return (
        f"{names}: {document['num_blocks']} blocks, {document['rows']} rows of the "
        f"{document['split']} split, {precisions}. Figures are {what}."
    )


def _remarks(document: Figures) -> Iterator[str]:
    recipe = document["recipe"]
    yield from recipe["refused"]
    if any(not run["map_is_stored"] for run in recipe["runs"]):
        yield (
            "Where the map was fitted on the rows it is judged on, agreement is a little too "
            "high: judge on other rows with --split test."
        )
    elif document["split"] == "validation":
        yield (
            "A run calibrates itself on its validation rows: agreement on them is a little too "
            "high. Judge on other rows with --split test."
        )
    if warning := document["exits"]["warning"]:
        yield f"Warning: {warning}."
