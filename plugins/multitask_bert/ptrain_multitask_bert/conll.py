"""CoNLL files: a word and its tag on every line, an empty line after every sentence."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.records import check_file, decoded_lines
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.tags import OUTSIDE, PREFIXES, Sentence

DOCUMENT = "-DOCSTART-"
"""What CoNLL-2003 writes for the beginning of a document, in place of a word."""

BLANK = f"{string.whitespace}\xa0\u200b\ufeff"
"""White space, and what shows as nothing: files put together of several have byte-order marks."""


def read_conll(
    path: Path, *, key: str, table: str, tokens: str | int = "auto", tags: str | int = "auto"
) -> list[Sentence]:
    """All sentences of a file, with their tags as they are written.

    key           the dotted setting that names the file, and `table` the one that it stands in
    tokens, tags  the columns, counted from 0; "auto": the first and the last

    Fields are parted by tabs, or in a line without one by spaces. A line of white space alone ends
    a sentence; comments, "# " and no tag, are left out. Raises DataError, which tells of all the
    broken lines at once.
    """
    check_file(path, key=key, table=table, endings=[path.suffix], kinds="CoNLL, .jsonl or .parquet")
    places = {"tokens": column(tokens, 0, role="tokens", table=table)}
    places["tags"] = column(tags, -1, role="tags", table=table)
    sentences: list[Sentence] = []
    broken = BrokenRows(str(path))
    words: list[tuple[str, str, str]] = []
    for line in fields_of(path, broken=broken):
        if line is None:
            if words:
                sentences.append(Sentence(*map(tuple, zip(*words, strict=True))))
            words = []
            continue
        number, fields = line
        at = f"{path}:{number}"
        try:
            words.append((*word_and_tag(fields, places, at=at), at))
        except DataError as error:
            broken.add(error)
    broken.check()
    if not sentences:
        empty = path.stat().st_size == 0
        raise DataError(
            f"{key}: {path} " + ("is empty" if empty else "holds no sentence"),
            hint="give a file with a word and its tag on every line",
        )
    return sentences


def column(asked: str | int, position: int, *, role: str, table: str) -> int:
    """The position of a column. Raises DataError for a name: CoNLL files have no header."""
    if asked == "auto":
        return position
    if isinstance(asked, int):
        return asked
    raise DataError(
        f"{table}.{role} is the name {asked!r}, and a CoNLL file does not name its columns",
        hint=f"set {table}.{role} to a position counted from 0",
    )


def fields_of(path: Path, *, broken: BrokenRows) -> Iterator[tuple[int, list[str]] | None]:
    """(line number, fields) of each word; None where a sentence ends, as it does with the file."""
    width = 0
    for number, raw in enumerate(decoded_lines(path), start=1):
        line = raw.rstrip("\r\n")
        if not line.strip(BLANK):
            yield None
            continue
        # A no-break space is part of a word, as in "10 000".
        fields = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if fields[0] == DOCUMENT or is_comment(line, fields):
            continue
        width = width or len(fields)
        if len(fields) != width:
            broken.add(
                DataError(
                    f"{path}:{number}: {len(fields)} fields, where the first word has {width}",
                    hint="correct or remove the line",
                )
            )
            continue
        yield number, fields
    yield None


def is_comment(line: str, fields: list[str]) -> bool:
    """Whether a line is a comment, and not the word "#" with its tag."""
    if fields[0] != "#" or not line.startswith("#"):
        return False
    last = fields[-1]
    return last != OUTSIDE and last.partition("-")[0] not in PREFIXES


def word_and_tag(fields: list[str], places: dict[str, int], *, at: str) -> tuple[str, str]:
    """The word of a line and its tag."""
    if len(fields) < 2:
        raise DataError(
            f"{at}: {fields[0]!r} alone: no tag",
            hint="a line is a word and its tag; an empty line ends a sentence",
        )
    if max(places.values()) >= len(fields):
        raise DataError(
            f"{at}: no column {max(places.values())}: the line has {len(fields)}, counted from 0",
            hint="set tokens and tags of the task to columns that are there",
        )
    word, tag = fields[places["tokens"]].strip(), fields[places["tags"]].strip()
    if not word or not tag:
        raise DataError(
            f"{at}: no {'tag' if word else 'word'}",
            hint="a line is a word and its tag; an empty line ends a sentence",
        )
    return word, tag
