"""The settings name a source for each split; it is found when it is asked for, and once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plugin_trainer.data.texts import hub_sets
from plugin_trainer.data.texts.columns import Columns, suggestion
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.data.texts.records import KINDS
from plugin_trainer.data.texts.sources import Place, Reader, Source, Table, TextFile
from plugin_trainer.errors import DataError
from ptrain_dactbert import negation
from ptrain_dactbert.settings import TextClassificationSettings

BUILTIN = "builtin:"
DEFAULT_TRAIN = TextClassificationSettings.train


@dataclass(frozen=True)
class Generated:
    """The built-in task, whose labels and rows are a matter of the settings."""

    split: str
    size: int
    seed: int

    where = "builtin:" + negation.NAME
    label_names = negation.LABELS

    def rows(self, *, known_labels: Collection[str]) -> list[Row]:
        """Rows made anew, the same each time."""
        del known_labels
        return negation.rows(self.size, split=self.split, seed=self.seed)

    def reader(self, place: Place | None, *, epoch: int, known_labels: Collection[str]) -> Reader:
        """There is none: the task is made in memory."""
        del place, epoch, known_labels
        raise DataError(
            f"data_settings.streaming: {self.where} is made in memory and cannot be streamed",
            hint="leave out data_settings.streaming, or set data_settings.train or .dataset",
        )


class Sources:
    """The sources of the splits that the settings ask for."""

    def __init__(self, settings: TextClassificationSettings) -> None:
        self.settings = settings
        self._found: dict[str, Source | None] = {}
        if not settings.dataset and (settings.subset or settings.revision):
            key = "subset" if settings.subset else "revision"
            raise DataError(
                f"data_settings.{key} is set, and data_settings.dataset is not",
                hint=f"name the data set that it is a {key} of, or leave it out",
            )

    def needed(self, split: str) -> Source:
        """The source of a split. Raises DataError if it has none."""
        if source := self.of(split):
            return source
        wanted = "split" if self.settings.dataset else f"{KINDS} file"
        raise DataError(f"data_settings.{split} is not set", hint=f"give a {wanted}")

    def of(self, split: str) -> Source | None:
        """The source of a split, or None if it has none."""
        if split not in self._found:
            find = self._of_data_set if self.settings.dataset else self._of_files
            self._found[split] = find(split)
        return self._found[split]

    # ------------------------------------------------------------------------------- inside

    def _of_files(self, split: str) -> Source | None:
        settings, key = self.settings, f"data_settings.{split}"
        name: str = getattr(settings, split)
        if not name and split == "validation" and settings.train.startswith(BUILTIN):
            name = settings.train
        if not name:
            return None
        if name.startswith(BUILTIN):
            return self._generated(name, split=split)
        path = Path(name).expanduser()
        if path.suffix != ".parquet":
            return TextFile(path, key, self._columns, settings.header)
        streaming = settings.streaming and split == "train"
        rows = hub_sets.open_parquet(path, key=key, streaming=streaming)
        return Table(rows, str(path), self._columns, settings.unlabelled, settings.seed)

    def _generated(self, name: str, *, split: str) -> Source:
        settings, known = self.settings, BUILTIN + negation.NAME
        if name != known:
            raise DataError(
                f"data_settings.{split}: there is no {name}{suggestion(name, known=[known])}",
                hint=f"generated tasks: {known}",
            )
        size = settings.examples if split == "train" else settings.validation_examples
        return Generated(split, size, settings.seed)

    def _of_data_set(self, split: str) -> Source | None:
        settings, key = self.settings, f"data_settings.{split}"
        wanted: str = getattr(settings, split)
        if split == "train" and wanted == DEFAULT_TRAIN:
            wanted = "train"  # nothing else was asked for: it is the default, and the recipe's
        if not wanted and split == "validation" and split in self._splits:
            wanted = split
        if not wanted:
            return None
        name = "/".join(part for part in (settings.dataset, settings.subset) if part)
        rows = hub_sets.pick_split(self._splits, wanted, name=name, key=key)
        where = wanted if "[" in wanted else f"{name}[{wanted}]"
        return Table(rows, where, self._columns, settings.unlabelled, settings.seed)

    @property
    def _columns(self) -> Columns:
        settings = self.settings
        return Columns(settings.text, settings.label, settings.difficulty, settings.text_pair)

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        settings = self.settings
        return hub_sets.open_splits(
            hub_sets.DataSet(
                settings.dataset, settings.subset, settings.revision, settings.streaming
            )
        )
