"""Where the rows of a split come from: a file, or a data set of the `datasets` library."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import Columns
from plugin_trainer.data.texts.reading import Header, Row, read_rows, rows_of_file
from plugin_trainer.data.texts.table_rows import (
    Unlabelled,
    class_names_of,
    read_split,
    table_reader,
)
from plugin_trainer.errors import DataError

Place = dict[str, Any]
"""Where a reader stands in its source: what JSON can hold, and nothing that grows with it."""


class Reader(Protocol):
    """Rows one after the other, from a place on. A broken row is raised, not passed over."""

    def __iter__(self) -> Iterator[Row]: ...

    def place(self) -> Place:
        """Where it stands now: after the last row that was taken."""
        ...


class Source(Protocol):
    """The rows of one split."""

    @property
    def where(self) -> str:
        """What a message calls it."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in order, where they are known before a row is read; else empty."""
        ...

    def rows(self, *, known_labels: Collection[str]) -> list[Row]:
        """All rows. Raises DataError, which tells of all the broken ones at once."""
        ...

    def reader(self, place: Place | None, *, epoch: int, known_labels: Collection[str]) -> Reader:
        """The rows of an epoch from a place on, read as they are asked for; None: from the first.

        Raises DataError for a source that cannot be streamed.
        """
        ...


# --------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class TextFile:
    """A .tsv, .csv or .jsonl file; its labels are known when it is read."""

    path: Path
    key: str
    columns: Columns
    header: Header

    label_names = ()

    @property
    def where(self) -> str:
        """The path as it was given."""
        return str(self.path)

    def rows(self, *, known_labels: Collection[str]) -> list[Row]:
        """The rows of the file."""
        return read_rows(
            self.path,
            key=self.key,
            columns=self.columns,
            header=self.header,
            known_labels=known_labels,
        )

    def reader(self, place: Place | None, *, epoch: int, known_labels: Collection[str]) -> Reader:
        """The rows in the order of the file; to get to a place its lines are read, and no more."""
        del epoch, known_labels
        return FileReader(self, taken=place["taken"] if place else 0)


class FileReader:
    """The rows of a file from the one after the first `taken` ones on."""

    def __init__(self, file: TextFile, *, taken: int) -> None:
        self._file, self._taken = file, taken

    def place(self) -> Place:
        """How many rows were taken."""
        return {"taken": self._taken}

    def __iter__(self) -> Iterator[Row]:
        file = self._file
        rows = rows_of_file(file.path, key=file.key, columns=file.columns, header=file.header)
        for row in islice(rows, self._taken, None):
            if isinstance(row, DataError):
                raise row
            self._taken += 1
            yield row


# ------------------------------------------------------------------------------------ data sets


@dataclass(frozen=True)
class Table:
    """A split of a `datasets` data set, in memory or streamed, or a Parquet file.

    split       a Dataset or an IterableDataset
    unlabelled  what becomes of a row without a label
    seed        chooses the order in which a stream's files are read
    """

    split: Any
    where: str
    columns: Columns
    unlabelled: Literal["error", "drop"]
    seed: int

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the label's ClassLabel feature, if it is one."""
        reader = table_reader(self.split, columns=self.columns, where=self.where, known_labels=())
        return tuple(name.strip() for name in reader.class_names)

    def declared(self, role: str) -> tuple[str, ...]:
        """The label names that one of the other columns declares, if it does."""
        reader = table_reader(self.split, columns=self.columns, where=self.where, known_labels=())
        position = reader.found.more.get(role)
        feature = None if position is None else reader.features.get(reader.names[position])
        return tuple(name.strip() for name in class_names_of(feature))

    def rows(self, *, known_labels: Collection[str]) -> list[Row]:
        """The rows of the split."""
        rows, broken, unlabelled = [], BrokenRows(self.where), 0
        for row in read_split(
            self.split, columns=self.columns, where=self.where, known_labels=known_labels
        ):
            if isinstance(row, Row):
                rows.append(row)
                continue
            unlabelled += isinstance(row, Unlabelled)
            if not (isinstance(row, Unlabelled) and self.unlabelled == "drop"):
                broken.add(row)
        if unlabelled and not rows:
            raise DataError(
                f"{self.where}: none of its {unlabelled} rows has a label",
                hint="the test parts of many data sets come without labels: leave the split out",
            )
        broken.check()
        if not rows:
            raise DataError(f"{self.where} holds no row", hint="choose another split")
        return rows

    def reader(self, place: Place | None, *, epoch: int, known_labels: Collection[str]) -> Reader:
        """The rows, file after file, the files in another order each epoch."""
        return TableStream(self, place, epoch=epoch, known_labels=known_labels)


class TableStream:
    """The rows of a split that is iterated, shard by shard.

    Its place is the shard, in the order of the epoch, and the `datasets` state within that shard.
    """

    def __init__(
        self, table: Table, place: Place | None, *, epoch: int, known_labels: Collection[str]
    ) -> None:
        self._table = table
        split = table.split
        self._split = split.to_iterable_dataset() if hasattr(split, "__len__") else split
        self._reader = table_reader(
            split, columns=table.columns, where=table.where, known_labels=known_labels
        )
        generator = torch.Generator().manual_seed(derive_seed(table.seed, "shards", epoch))
        self._order = torch.randperm(self._split.num_shards, generator=generator).tolist()
        self._shard: int = place["shard"] if place else 0
        self._number: int = place["number"] if place else 0
        self._inner: Place | None = place["inner"] if place else None
        self._open: Any = None

    def place(self) -> Place:
        """The shard, the state within it, and how many rows were read."""
        inner = self._open.state_dict() if self._open is not None else self._inner
        return {"shard": self._shard, "number": self._number, "inner": inner}

    def __iter__(self) -> Iterator[Row]:
        rows = self._split.select_columns(self._reader.columns)
        while self._shard < len(self._order):
            self._open = rows.shard(num_shards=len(self._order), index=self._order[self._shard])
            if self._inner is not None:
                self._open.load_state_dict(self._inner)
            for record in self._open:
                self._number += 1
                row = self._reader.row(record, number=self._number)
                if isinstance(row, Row):
                    yield row
                elif not (isinstance(row, Unlabelled) and self._table.unlabelled == "drop"):
                    raise row
            self._shard, self._inner, self._open = self._shard + 1, None, None


def all_labels_known(source: Source, labels: Sequence[str]) -> tuple[str, ...]:
    """The label names of a stream: those of the settings, else those the data set declares.

    Raises DataError if neither says.
    """
    if names := tuple(labels) or source.label_names:
        return names
    raise DataError(
        f"data_settings.streaming: the labels of {source.where} are not known before it is read",
        hint='list them in data_settings.labels = ["...", "..."], in the order of their numbers',
    )
