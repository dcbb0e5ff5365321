"""A file becomes rows of text, label and difficulty; what is wrong with it is named by its line."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plugin_trainer.errors import DataError

TEXT_NAMES = ("text", "sentence", "content", "review")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "sentiment")

Header = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns to read, each a name or a position; "auto" looks for the usual names."""

    text: str | int = "auto"
    label: str | int = "auto"
    difficulty: str | int = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text, as the file has it; `line` is where it stands, counted from 1."""

    text: str
    label: str
    line: int
    difficulty: int = -1


def suggestion(wrong: str, *, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def read_rows(path: Path, *, key: str, columns: Columns, header: Header = "auto") -> list[Row]:
    """All rows of a .tsv, .csv or .jsonl file.

    key  the dotted setting that names the file, for the messages. Raises DataError.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        raise DataError(
            f"{key}: {path} is {what}",
            hint=f"looked at {path.absolute()}; give a .tsv, .csv or .jsonl file",
        )
    if path.suffix not in READERS:
        raise DataError(
            f"{key}: {path} ends in {path.suffix or 'nothing'}",
            hint=f"its ending says how a file is read: {', '.join(READERS)}",
        )
    try:
        rows = list(READERS[path.suffix](path, columns, header))
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror}") from error
    if not rows:
        empty = path.stat().st_size == 0
        raise DataError(
            f"{key}: {path} " + ("is empty" if empty else "holds no row of data"),
            hint="give a file with one labelled text a line",
        )
    return rows


# ---------------------------------------------------------------------------------------- lines


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, a byte-order mark left out."""
    # Only "\n" ends a line: str.splitlines would break a text at U+2028 and shift every number.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8",
                    hint="save the file as UTF-8",
                ) from error


def tsv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields), tabs between them, quotes like any other character."""
    for number, line in enumerate(decoded_lines(path), start=1):
        if line := line.rstrip("\r\n"):
            yield number, line.split("\t")


def csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields); a quoted field may hold commas, quotes and line ends."""
    reader = csv.reader(decoded_lines(path), strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{first_line}: broken CSV: {error}",
                hint='a field with a comma or a quote in it stands in "quotes", its quotes doubled',
            ) from error
        if record is None:
            return
        if record:
            yield first_line, record


# --------------------------------------------------------------------------------------- tables


def read_table(
    records: Iterator[tuple[int, list[str]]], path: Path, columns: Columns, header: Header
) -> Iterator[Row]:
    """Rows of a file whose every record has as many fields as its first."""
    first = next(records, None)
    if first is None:
        return
    line, cells = first
    names = cells if has_header(cells, columns=columns, header=header) else None
    text, label, difficulty = find_columns(columns, names=names, width=len(cells), path=path)
    rest = records if names is not None else chain_one(first, records)
    for line, fields in rest:
        if len(fields) != len(cells):
            raise DataError(
                f"{path}:{line}: {len(fields)} fields, where the first line has {len(cells)}",
                hint="correct or remove the line",
            )
        yield Row(
            text=fields[text],
            label=label_text(fields[label], at=f"{path}:{line}"),
            line=line,
            difficulty=-1 if difficulty is None else grade(fields[difficulty], at=f"{path}:{line}"),
        )


def chain_one(
    first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """The record already taken, then the rest."""
    yield first
    yield from rest


def has_header(cells: Sequence[str], *, columns: Columns, header: Header) -> bool:
    """Whether the first record names the columns."""
    if header != "auto":
        return header
    wanted = (columns.text, columns.label, columns.difficulty)
    if any(isinstance(column, str) and column not in ("", "auto") for column in wanted):
        return True  # a column asked for by name: if it is not there, that is the message to give
    plain = [cell.strip().lower() for cell in cells]
    return any(name in plain for name in TEXT_NAMES) and any(name in plain for name in LABEL_NAMES)


def find_columns(
    columns: Columns, *, names: Sequence[str] | None, width: int, path: Path
) -> tuple[int, int, int | None]:
    """The positions of text, label and, if asked for, difficulty."""
    text = find_column(columns.text, "text", TEXT_NAMES, 0, names, width, path)
    label = find_column(columns.label, "label", LABEL_NAMES, 1, names, width, path)
    if columns.difficulty == "":
        return text, label, None
    return text, label, find_column(columns.difficulty, "difficulty", (), 2, names, width, path)


def find_column(
    wanted: str | int,
    role: str,
    usual: Sequence[str],
    position: int,
    names: Sequence[str] | None,
    width: int,
    path: Path,
) -> int:
    """The position of one column, or a DataError that lists those seen."""
    if wanted == "auto":
        plain = [name.strip().lower() for name in names or ()]
        wanted = next((plain.index(name) for name in usual if name in plain), position)
    if isinstance(wanted, int):
        if wanted < width:
            return wanted
        raise DataError(
            f"{path}:1: no column {wanted} for the {role}: the line has {width}, counted from 0",
            hint=f"set data_settings.{role} to a position or a name in the file",
        )
    if names is None:
        raise DataError(
            f"{path}: column {wanted!r} is asked for by name, and the file has no header",
            hint=f"set data_settings.{role} to a position counted from 0",
        )
    if wanted in names:
        return list(names).index(wanted)
    raise no_column(wanted, role=role, names=names, at=f"{path}:1")


def no_column(wanted: str, *, role: str, names: Sequence[str], at: str) -> DataError:
    """The error for a column that is not there."""
    return DataError(
        f"{at}: no column {wanted!r} for the {role}{suggestion(wanted, known=names)}",
        hint=(
            f"columns: {', '.join(names) or 'none'}",
            f"set data_settings.{role} to one of them, or to a position counted from 0",
        ),
    )


# ---------------------------------------------------------------------------------------- JSONL


def read_jsonl(path: Path, columns: Columns, header: Header) -> Iterator[Row]:
    """Rows of a file with a JSON object on every line."""
    del header  # every line names its own columns
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line.strip():
            continue
        at = f"{path}:{number}"
        fields = parse_object(line, at=at)
        text = fields[field_name(columns.text, "text", TEXT_NAMES, fields, at)]
        if not isinstance(text, str):
            raise DataError(f"{at}: the text is {json.dumps(text)[:40]}, not a string")
        label = fields[field_name(columns.label, "label", LABEL_NAMES, fields, at)]
        difficulty = -1
        if columns.difficulty != "":
            name = field_name(columns.difficulty, "difficulty", (), fields, at)
            difficulty = grade(json_text(fields[name]), at=at)
        yield Row(text, label_text(json_text(label), at=at), number, difficulty)


def parse_object(line: str, *, at: str) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{at}: not valid JSON: {error}", hint="one JSON object a line; correct or remove it"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{at}: a JSON {type(value).__name__}, where an object is wanted")
    return value


def field_name(
    wanted: str | int, role: str, usual: Sequence[str], fields: dict[str, Any], at: str
) -> str:
    """The key that holds the text, the label or the difficulty."""
    if isinstance(wanted, int):
        raise DataError(
            f"{at}: data_settings.{role} is the position {wanted}, and JSON lines have names only",
            hint=f"keys: {', '.join(fields) or 'none'}",
        )
    if wanted == "auto":
        wanted = next((name for name in usual if name in fields), usual[0])
    if wanted not in fields:
        raise no_column(wanted, role=role, names=list(fields), at=at)
    return wanted


def json_text(value: object) -> str:
    """A JSON value as a cell of a table would have it."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


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


def read_tsv(path: Path, columns: Columns, header: Header) -> Iterator[Row]:
    """Rows of a .tsv file."""
    return read_table(tsv_records(path), path, columns, header)


def read_csv(path: Path, columns: Columns, header: Header) -> Iterator[Row]:
    """Rows of a .csv file."""
    return read_table(csv_records(path), path, columns, header)


READERS = {".tsv": read_tsv, ".csv": read_csv, ".jsonl": read_jsonl}
