"""The rows of a data set of the `datasets` library, as a file would have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugin_trainer.data.texts.columns import Columns, Found, named_columns
from plugin_trainer.data.texts.reading import NO_TEXT, Row, made_row
from plugin_trainer.data.texts.records import json_text
from plugin_trainer.errors import DataError

UNLABELLED = -1
"""What the Hub's data sets write for a row without a label."""


class Unlabelled(DataError):
    """A row that has no label."""


@dataclass(frozen=True)
class TableReader:
    """Makes rows of the records of one split.

    where         what a message calls the split
    names         its columns
    found         where in `names` the texts, the label and the difficulty are
    class_names   the label names that the split itself gives to numbers; empty: none
    known_labels  the label names of the run, as far as they are known
    table         the settings table that asks for the split
    features      what the split says of its columns, by name
    """

    where: str
    names: Sequence[str]
    found: Found
    class_names: Sequence[str]
    known_labels: Collection[str]
    table: str = "data_settings"
    features: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [self.names[position] for position in self.found.positions]

    def row(self, record: dict[str, Any], *, number: int) -> Row | DataError:
        """One row, or what is wrong with it; `number` counts from 1."""
        at = f"{self.where}:{number}"
        cells = [""] * len(self.names)
        try:
            # The label first: a row that is left out for want of one needs no text.
            if self.found.label is not None:
                column = self.names[self.found.label]
                cells[self.found.label] = self._label(record[column], column=column, at=at)
            for position in (self.found.text, self.found.text_pair):
                if position is not None:
                    cells[position] = self._text(record[self.names[position]], position, at=at)
            if self.found.difficulty is not None:
                cells[self.found.difficulty] = json_text(record[self.names[self.found.difficulty]])
        except DataError as error:
            return error
        values: list[Any] = [None] * len(self.names)
        for position in self.found.more.values():
            if position is not None:
                name = self.names[position]
                values[position] = named(record[name], self.features.get(name))
        return made_row(cells, found=self.found, line=number, at=at, values=values)

    def _text(self, value: Any, position: int, *, at: str) -> str:
        if isinstance(value, str):
            return value
        raise DataError(
            f"{at}: the text in {self.names[position]} is {str(value)[:40]}, not a string",
            hint=(NO_TEXT, f"columns: {', '.join(self.names)}"),
        )

    def _label(self, value: Any, *, column: str, at: str) -> str:
        if value is None or (value == UNLABELLED and str(UNLABELLED) not in self.known_labels):
            raise Unlabelled(
                f"{at}: no label ({column} is {'missing' if value is None else value})",
                hint=f'to leave rows without a label out: {self.table}.unlabelled = "drop"',
            )
        if isinstance(value, float):
            if not value.is_integer():
                raise DataError(
                    f"{at}: the label in {column} is {value}, not a class",
                    hint="this data module classifies; it knows no regression",
                )
            value = int(value)
        if self.class_names and isinstance(value, int) and 0 <= value < len(self.class_names):
            name = self.class_names[value]
            # With labels of the user's own the number is what the two have in common.
            return name if not self.known_labels or name in self.known_labels else str(value)
        if isinstance(value, (str, bool, int)):
            return json_text(value)
        raise DataError(
            f"{at}: the label in {column} is {str(value)[:40]}, not a name or a number",
            hint=f"one label a row; choose another column with {self.table}.label",
        )


def table_reader(
    split: Any, *, columns: Columns, where: str, known_labels: Collection[str]
) -> TableReader:
    """The reader that fits a split. Raises DataError, which lists the columns seen."""
    names = split.column_names
    if names is None:  # a stream of files that say nothing of their columns
        names = list(next(iter(split), {}))
    found = named_columns(columns, names=names, at=where)
    label = "" if found.label is None else names[found.label]
    features = split.features or {}
    class_names = class_names_of(features.get(label))
    return TableReader(where, names, found, class_names, known_labels, columns.table, features)


def class_names_of(feature: Any) -> tuple[str, ...]:
    """The label names that a column of labels, or of lists of them, declares; empty: none."""
    of_items = getattr(feature, "feature", feature)
    return tuple(getattr(of_items, "names", None) or ())


def named(value: Any, feature: Any) -> Any:
    """A value of a column, with names for the numbers of declared labels; None for a -1."""
    if not (names := class_names_of(feature)):
        return value
    if isinstance(value, list):
        return [named(item, feature) for item in value]
    if value is None or value == UNLABELLED:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def read_split(
    split: Any, *, columns: Columns, where: str, known_labels: Collection[str]
) -> Iterator[Row | DataError]:
    """The rows of a split in order."""
    reader = table_reader(split, columns=columns, where=where, known_labels=known_labels)
    for number, record in enumerate(split.select_columns(reader.columns), start=1):
        yield reader.row(record, number=number)
