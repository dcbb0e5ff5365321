"""The lines of a text file, and the records of a table, each with its number.

A file that is not there, or not of a kind that can be read, is refused in one place.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from plugin_trainer.errors import DataError

KINDS = ".tsv, .csv, .jsonl or .parquet"


def check_file(
    path: Path,
    *,
    key: str,
    table: str = "data_settings",
    endings: Collection[str],
    kinds: str = KINDS,
) -> None:
    """Raise DataError for a file that is not there, or whose ending says no way to read it.

    key      the dotted setting that names the file, and `table` the one that it stands in
    endings  those that can be read; kinds is what a message calls them
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        raise DataError(
            f"{key}: {path} is {what}",
            hint=(
                f"looked at {path.absolute()}; give a {kinds} file",
                *([f"a folder of data goes into {table}.dataset"] if path.is_dir() else []),
                *([data_set_hint(path, key=key, table=table)] if may_be_hub_id(path) else []),
            ),
        )
    if path.suffix not in endings:
        raise DataError(
            f"{key}: {path} ends in {path.suffix or 'nothing'}",
            hint=f"its ending says how a file is read: {kinds}",
        )


def may_be_hub_id(path: Path) -> bool:
    """Whether what is no file is spelled like a data set of the Hub, as owner/name or a name."""
    spelled = re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", str(path))
    ending = path.suffix.removeprefix(".")  # v1.1 has one that is no kind of file
    return spelled is not None and not path.exists() and not ending.isalpha()


def data_set_hint(path: Path, *, key: str, table: str) -> str:
    """What to write for a data set whose name was given for a file."""
    return (
        f'for a data set of the Hugging Face Hub: {table}.dataset = "{path}", '
        f"and leave {key} out or name a split in it"
    )


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, a byte-order mark left out."""
    # Only "\n" ends a line: str.splitlines would break a text at U+2028 and shift every number.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and b"\r" in raw.rstrip(b"\r\n") and not raw.endswith(b"\n"):
                raise DataError(
                    f"{path}: its lines end in a carriage return alone",
                    hint="save the file with line ends of Unix or Windows",
                )
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


_LONGEST_FIELD = 2**31 - 1
"""In characters; the library's own limit is 131,072, less than a long text has."""


def csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields); a quoted field may hold commas, quotes and line ends."""
    csv.field_size_limit(_LONGEST_FIELD)
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


def parse_object(line: str, *, at: str) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = json.loads(line)
        if "\\u" in line:  # JSON may spell half of a character, which no text can hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{at}: half of a character, a lone surrogate such as \\ud800",
            hint="correct or remove it",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is the former
        raise DataError(
            f"{at}: not valid JSON: {error}", hint="one JSON object a line; correct or remove it"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{at}: a JSON {type(value).__name__}, where an object is wanted")
    return value


def json_text(value: object) -> str:
    """A JSON value as a cell of a table would have it."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


RECORDS = {".tsv": tsv_records, ".csv": csv_records}
