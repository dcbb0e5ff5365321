"""A file becomes rows of labelled texts; what is wrong with it is named by its line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import (
    LABEL_NAMES,
    TEXT_NAMES,
    Columns,
    Found,
    named_columns,
    names_columns,
    plain_names,
    table_columns,
)
from plugin_trainer.data.texts.records import (
    RECORDS,
    check_file,
    csv_records,
    decoded_lines,
    json_text,
    parse_object,
    tsv_records,
)
from plugin_trainer.errors import DataError

Header = bool | Literal["auto"]

NO_TEXT = (
    "give every row a text, or remove those without one; "
    "data_settings.unlabelled leaves out rows without a label only"
)
"""What to do about a text that is null or no string."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text or pair of texts, as the file has it.

    line       where it stands, counted from 1
    text_pair  the second text; None: there is one text only
    more       what the other columns hold, as the file has it
    """

    text: str
    label: str
    line: int
    difficulty: int = -1
    text_pair: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def read_rows(
    path: Path,
    *,
    key: str,
    columns: Columns,
    header: Header = "auto",
    known_labels: Collection[str] = (),
) -> list[Row]:
    """All rows of a .tsv, .csv or .jsonl file.

    key           the dotted setting that names the file, for the messages
    known_labels  the label names, as far as they are known: a first line that has one is data

    Raises DataError, which tells of all the broken rows at once.
    """
    rows, broken = [], BrokenRows(str(path))
    try:
        for row in rows_of_file(path, key=key, columns=columns, header=header):
            if isinstance(row, DataError):
                broken.add(row)
            else:
                rows.append(row)
    except DataError as error:  # what comes after it in the file cannot be read
        broken.add(error)
    broken.check()
    if not rows:
        empty = path.stat().st_size == 0
        raise DataError(
            f"{key}: {path} " + ("is empty" if empty else "holds no row of data"),
            hint="give a file with one labelled text a line",
        )
    if path.suffix in RECORDS and header == "auto" and columns.label != "" and not columns.named:
        refuse_hidden_header(rows, path=path, known_labels=known_labels, columns=columns)
    return rows


def rows_of_file(
    path: Path, *, key: str, columns: Columns, header: Header = "auto"
) -> Iterator[Row | DataError]:
    """The rows of a file one by one, read as they are asked for; a broken one is its error.

    Raises DataError where nothing more can be read.
    """
    check_file(path, key=key, table=columns.table, endings=READERS)
    try:
        yield from READERS[path.suffix](path, columns, header)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror}") from error


def refuse_hidden_header(
    rows: Sequence[Row],
    *,
    path: Path,
    known_labels: Collection[str],
    columns: Columns,
) -> None:
    """Refuse a first line that was taken for data and looks like the names of the columns.

    Its label is then in no other row. A CSV file has a header as a rule, so that is enough there;
    in a TSV file the other labels are also numbers or come again and again.
    """
    _, cells = next(RECORDS[path.suffix](path))
    if names_columns(cells, labels=columns.labels):
        return
    first, rest = rows[0], Counter(row.label for row in rows[1:])
    if path.suffix == ".csv":
        known = is_integer(first.label) or first.label in {*rest, *known_labels}
        # Columns that nobody named are called 0 and 1 by the tools that write such files.
        if not known or is_integer(first.text):
            raise hidden_header(first, path=path, table=columns.table)
        return
    if len(rows) < 3 or is_integer(first.label) or first.label in {*rest, *known_labels}:
        return
    plain = plain_names([first.text, first.label])
    if any(len(cell.split()) > 3 for cell in plain):
        return
    usual = plain[0] in TEXT_NAMES or plain[1] in LABEL_NAMES
    if usual or all(map(is_integer, rest)) or min(rest.values()) > 1:
        raise hidden_header(first, path=path, table=columns.table)


def hidden_header(first: Row, *, path: Path, table: str) -> DataError:
    """The error for a first row that may be the names of the columns."""
    cells = [first.text, *([] if first.text_pair is None else [first.text_pair]), first.label]
    shown = ", ".join(repr(shorten(cell, 30, placeholder=" ...")) for cell in cells)
    pair = "" if first.text_pair is None else f", {table}.text_pair"
    return DataError(
        f"{path}:{first.line}: this looks like a header and not like data: {shown}",
        hint=(
            f"if it names the columns: {table}.header = true, or choose them by name in "
            f"{table}.text{pair} and {table}.label",
            f"if it is data: {table}.header = false",
        ),
    )


def check_pairs(
    rows: Iterable[Row], *, pairs: bool, where: str, table: str = "data_settings"
) -> None:
    """Refuse pairs where the run is one of single texts, and the other way round."""
    for row in rows:
        if (row.text_pair is not None) != pairs:
            raise DataError(
                f"{where}:{row.line}: {'one text' if pairs else 'a pair of texts'}, where the "
                f"training data have {'pairs' if pairs else 'single texts'}",
                hint=f"set {table}.text and {table}.text_pair to the columns to read",
            )


def is_integer(label: str) -> bool:
    """Whether a label is a whole number, such as 3 or -1."""
    return label.removeprefix("-").isdecimal()


# --------------------------------------------------------------------------------------- tables


def read_table(
    records: Iterator[tuple[int, list[str]]], path: Path, columns: Columns, header: Header
) -> Iterator[Row | DataError]:
    """Rows of a file whose every record has as many fields as its first."""
    first = next(records, None)
    if first is None:
        return
    _, cells = first
    names = cells if has_header(cells, columns=columns, header=header) else None
    found = table_columns(columns, names=names, cells=cells, at=f"{path}:1")
    for line, fields in records if names is not None else chain([first], records):
        at = f"{path}:{line}"
        if len(fields) != len(cells):
            yield DataError(
                f"{at}: {len(fields)} fields, where the first line has {len(cells)}",
                hint="correct or remove the line",
            )
        else:
            yield made_row(fields, found=found, line=line, at=at)


def has_header(cells: Sequence[str], *, columns: Columns, header: Header) -> bool:
    """Whether the first record names the columns."""
    if header != "auto":
        return header
    # A column asked for by name: if it is not there, that is the message to give.
    labelled = columns.label != "" or bool(columns.more)
    return columns.named or names_columns(cells, labels=columns.labels, labelled=labelled)


def made_row(
    cells: Sequence[str],
    *,
    found: Found,
    line: int,
    at: str,
    values: Sequence[Any] | None = None,
) -> Row | DataError:
    """The row of a record, or what is wrong with it.

    values  what the cells were before they became text, where they were something else
    """
    values = cells if values is None else values
    try:
        if not cells[found.text].strip():
            raise DataError(f"{at}: no text", hint=NO_TEXT)
        return Row(
            text=cells[found.text],
            label="" if found.label is None else label_text(cells[found.label], at=at),
            line=line,
            difficulty=-1 if found.difficulty is None else grade(cells[found.difficulty], at=at),
            text_pair=None if found.text_pair is None else cells[found.text_pair],
            more={
                role: None if position is None else values[position]
                for role, position in found.more.items()
            },
        )
    except DataError as error:
        return error


# ---------------------------------------------------------------------------------------- JSONL


def read_jsonl(path: Path, columns: Columns, header: Header) -> Iterator[Row | DataError]:
    """Rows of a file with a JSON object on every line."""
    del header  # every line names its own columns
    seen: dict[tuple[str, ...], Found] = {}
    for number, line in enumerate(decoded_lines(path), start=1):
        if line.strip():
            yield json_row(line, columns=columns, seen=seen, number=number, at=f"{path}:{number}")


def json_row(
    line: str, *, columns: Columns, seen: dict[tuple[str, ...], Found], number: int, at: str
) -> Row | DataError:
    """The row of a JSON object, or what is wrong with it.

    seen  where the columns are, for each set of names met so far; a new one is added
    """
    try:
        fields = parse_object(line, at=at)
        names = tuple(fields)
        found = seen.get(names)
        if found is None:
            found = seen[names] = named_columns(columns, names=names, at=at)
        values = list(fields.values())
        for position in (found.text, found.text_pair):
            if position is not None and not isinstance(values[position], str):
                raise DataError(
                    f"{at}: the text is {json.dumps(values[position])[:40]}, not a string",
                    hint=NO_TEXT,
                )
        cells = [json_text(value) for value in values]
        return made_row(cells, found=found, line=number, at=at, values=values)
    except DataError as error:
        return error


# ---------------------------------------------------------------------------------------- cells


def label_text(cell: str, *, at: str) -> str:
    """A label's cell, which must not be empty."""
    if label := cell.strip():
        return label
    raise DataError(f"{at}: no label", hint="give the row a label, or remove it")


def grade(cell: str, *, at: str) -> int:
    """A difficulty's cell: a whole number from 0 on."""
    if cell.strip().isdecimal():
        return int(cell)
    raise DataError(
        f"{at}: the difficulty is {cell.strip()!r}, not a whole number from 0 on",
        hint="correct the row, or leave out data_settings.difficulty",
    )


def read_tsv(path: Path, columns: Columns, header: Header) -> Iterator[Row | DataError]:
    """Rows of a .tsv file."""
    return read_table(tsv_records(path), path, columns, header)


def read_csv(path: Path, columns: Columns, header: Header) -> Iterator[Row | DataError]:
    """Rows of a .csv file."""
    return read_table(csv_records(path), path, columns, header)


READERS = {".tsv": read_tsv, ".csv": read_csv, ".jsonl": read_jsonl}
