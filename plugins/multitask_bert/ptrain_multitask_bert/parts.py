"""Where the rows of a part of a task are: a file, a split of a data set, or generated ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.texts import hub_sets
from plugin_trainer.errors import DataError
from ptrain_multitask_bert import generated
from ptrain_multitask_bert.settings_data import TaskSettings

BUILTIN = "builtin:"
HELD_OUT = re.compile(r"last\s+([\d_]+)|([\d.]+)\s*%")
"""What `validation` may say in place of a file: "last 800" or "10 %"."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """The rows of one part of a task, not read yet; one of the last three says where they are.

    key      the dotted setting that asks for them, and `table` the settings table of the task
    where    what a message calls them
    path     a file
    split    a split of a `datasets` data set, or the rows of a Parquet file
    records  generated ones
    """

    key: str
    table: str
    where: str
    path: Path | None = None
    split: Any = None
    records: Sequence[Mapping[str, Any]] | None = None


class Parts:
    """The parts of a task that its settings ask for.

    Raises DataError for settings that name no rows to train on, or name them twice.
    """

    def __init__(self, task: str, settings: TaskSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.table = f"data_settings.tasks.{task}"
        self._task = task
        if not settings.dataset and (settings.subset or settings.revision):
            key = "subset" if settings.subset else "revision"
            raise DataError(
                f"{self.table}.{key} is set, and {self.table}.dataset is not",
                hint=f"name the data set that it is a {key} of, or leave it out",
            )
        if not settings.dataset and not settings.train:
            raise DataError(
                f"the task '{task}' has no data: {self.table}.train is not set",
                hint="give a file, or a data set in `dataset`, or leave the task out",
            )

    @property
    def held_out(self) -> str:
        """What part of the training rows validates: "last 800" or "10 %"; empty: none does."""
        wanted = self.settings.validation.strip()
        return wanted if HELD_OUT.fullmatch(wanted) else ""

    def of(self, name: str) -> Part | None:
        """The part "train", "validation" or "test"; None if there is none of its own."""
        settings = self.settings
        wanted: str = getattr(settings, name)
        if name == "validation" and self.held_out:
            return None
        if settings.dataset:
            return self._of_data_set(name, wanted)
        if not wanted and name == "validation" and settings.train.startswith(BUILTIN):
            wanted = settings.train
        if not wanted:
            return None
        key = f"{self.table}.{name}"
        if wanted.startswith(BUILTIN):
            size = settings.examples if name == "train" else settings.validation_examples
            records = generated.rows(
                wanted.removeprefix(BUILTIN), split=name, size=size, seed=self.seed
            )
            return Part(key, self.table, f"{wanted}[{name}]", records=records)
        path = Path(wanted).expanduser()
        if path.suffix == ".parquet":
            split = hub_sets.open_parquet(path, key=key, streaming=False)
            return Part(key, self.table, str(path), split=split)
        return Part(key, self.table, str(path), path=path)

    def divided(self, rows: Sequence[Item], *, where: str) -> tuple[list[Item], list[Item]]:
        """The training rows apart from those that are held out of them, both in order.

        Raises DataError if there is nothing left of either.
        """
        found = HELD_OUT.fullmatch(self.held_out)
        if found is None:
            return list(rows), []
        if found[1]:
            count = int(found[1])
            chosen = set(range(len(rows) - count, len(rows)))
        else:
            count = round(len(rows) * float(found[2]) / 100)
            seed = derive_seed(self.seed, "held out", self._task)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            chosen = set(order[:count].tolist())
        if not 0 < count < len(rows):
            raise DataError(
                f'{self.table}.validation = "{self.held_out}" holds {count} of the {len(rows)} '
                f"rows of {where} out",
                hint="leave at least one row to train on and one to validate",
            )
        return (
            [row for at, row in enumerate(rows) if at not in chosen],
            [row for at, row in enumerate(rows) if at in chosen],
        )

    # ------------------------------------------------------------------------------- inside

    def _of_data_set(self, name: str, wanted: str) -> Part | None:
        settings, key = self.settings, f"{self.table}.{name}"
        if not wanted and (name == "train" or (name == "validation" and name in self._splits)):
            wanted = name
        if not wanted:
            return None
        shown = "/".join(part for part in (settings.dataset, settings.subset) if part)
        split = hub_sets.pick_split(self._splits, wanted, name=shown, key=key)
        return Part(key, self.table, f"{shown}[{wanted}]", split=split)

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        settings = self.settings
        return hub_sets.open_splits(
            hub_sets.DataSet(settings.dataset, settings.subset, settings.revision, table=self.table)
        )
