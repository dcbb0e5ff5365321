"""Sentences that come as lists: rows of a JSONL file or a data set with words and their tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.records import check_file, decoded_lines, parse_object
from plugin_trainer.data.texts.table_rows import named
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.parts import Part
from ptrain_multitask_bert.settings_data import TaskSettings
from ptrain_multitask_bert.tags import Sentence

USUAL = {"tokens": ("tokens", "words"), "tags": ("tags", "ner_tags", "labels")}
"""The names of the columns that "auto" looks for."""


def read_tagged(part: Part, *, settings: TaskSettings) -> list[Sentence]:
    """All sentences of a JSONL file, a split or the generator, their tags as they are written.

    Raises DataError, which tells of all the broken rows at once. Rows without a word are left out.
    """
    sentences: list[Sentence] = []
    broken = BrokenRows(part.where)
    columns: dict[str, str] = {}
    for number, record in records_of(part, broken=broken):
        at = f"{part.where}:{number}"
        try:
            for role in USUAL:
                if columns.get(role) not in record:
                    asked = getattr(settings, role)
                    columns[role] = find(asked, record, role=role, table=part.table, at=at)
            features = (part.split.features or {}) if part.split is not None else {}
            tags = named(record[columns["tags"]], features.get(columns["tags"]))
            sentence = sentence_of(record[columns["tokens"]], tags, at=at)
        except DataError as error:
            broken.add(error)
            continue
        if sentence.words:
            sentences.append(sentence)
    broken.check()
    if not sentences:
        raise DataError(
            f"{part.key}: {part.where} holds no sentence",
            hint="give rows with the words and their tags as lists",
        )
    return sentences


def records_of(part: Part, *, broken: BrokenRows) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows with their numbers; of a split only the columns that may be meant."""
    if part.path is not None:
        check_file(part.path, key=part.key, table=part.table, endings=[".jsonl"])
        for number, line in enumerate(decoded_lines(part.path), start=1):
            if line.strip():
                try:
                    yield number, parse_object(line, at=f"{part.path}:{number}")
                except DataError as error:
                    broken.add(error)
    else:
        rows = part.records if part.records is not None else part.split
        yield from enumerate(rows, start=1)


def find(asked: str | int, record: Mapping[str, Any], *, role: str, table: str, at: str) -> str:
    """The name of a column, asked for or usual. Raises DataError, which lists those there are."""
    if asked == "auto":
        usual = [name for name in USUAL[role] if name in record]
        if usual:
            return usual[0]
        wanted = f"none called {' or '.join(USUAL[role])}"
    elif asked in record:
        return str(asked)
    else:
        wanted = f"no {asked!r}{suggestion(str(asked), known=record)}"
    raise DataError(
        f"{at}: which column has the {role}? There is {wanted}",
        hint=(f"columns: {', '.join(record) or 'none'}", f"set {table}.{role} to one of them"),
    )


def sentence_of(words: Any, tags: Any, *, at: str) -> Sentence:
    """The sentence of a row. Raises DataError for what is no list of words with a tag each."""
    for what, value in (("words", words), ("tags", tags)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(
                f"{at}: the {what} are {json.dumps(value, default=str)[:40]}, not a list",
                hint="a row is a list of words and a list of as many tags",
            )
    if len(words) != len(tags):
        raise DataError(
            f"{at}: {len(words)} words and {len(tags)} tags", hint="give every word one tag"
        )
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(
            f"{at}: the tags are numbers, and nothing says what they mean",
            hint="give their names: O, B-person, I-person, or a data set whose tags are ClassLabel",
        )
    if not all(isinstance(item, str) for item in (*words, *tags)):
        raise DataError(f"{at}: a word or a tag is no text", hint="correct or remove the row")
    places = tuple(f"{at}, word {position}" for position in range(1, len(words) + 1))
    return Sentence(tuple(words), tuple(tags), places)
