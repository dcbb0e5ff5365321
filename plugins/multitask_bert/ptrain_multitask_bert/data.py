"""Any number of tasks on texts, as batches of token ids by task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch.utils.data import DataLoader

from plugin_trainer.data import Fed
from plugin_trainer.data.texts.loaders import loader
from plugin_trainer.data.texts.tokenized import Padding, TokenizedTexts
from plugin_trainer.data.texts.tokenizers import (
    pretrained_tokenizer,
    saved_tokenizer,
    trained_tokenizer,
)
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.classification import Classification
from ptrain_multitask_bert.decoding import RESERVED, answers_to, batches_of
from ptrain_multitask_bert.entities import Entities
from ptrain_multitask_bert.heads import MARKS, Head
from ptrain_multitask_bert.metrics import Metrics, exit_metrics, metrics_of
from ptrain_multitask_bert.parts import Parts
from ptrain_multitask_bert.relations import Relations
from ptrain_multitask_bert.requests import parse_lines
from ptrain_multitask_bert.settings_data import MultitaskSettings
from ptrain_multitask_bert.tasks import Task, head_with_exits

TASKS_FILE = "tasks.json"
KINDS: Mapping[str, type[Task]] = {
    kind.kind: kind for kind in (Classification, Entities, Relations)
}
SPLITS = ("train", "validation", "test")

Batch = Mapping[str, Any]
Loaders = dict[str, DataLoader[Any]]


class MultitaskData:
    """The tasks of the settings, with one tokenizer for all of them.

    tokenizer  what cuts texts into tokens; a Hugging Face fast tokenizer. It knows the four marks
               of a relation as tokens if there is a task of relations
    tasks      by name, in the order of the settings

    All files are read and tokenised when the module is made, so that a broken line in the last one
    is found before the first step, and what is wrong with each task is said together.
    """

    def __init__(self, settings: MultitaskSettings, *, assets: Path | None = None) -> None:
        self.settings = settings
        check_names(settings)
        self.tasks: dict[str, Task] = {}
        self._parts: dict[str, Parts] = {}
        self._rows: dict[tuple[str, str], tuple[list[Any], str]] = {}
        self._encoded: dict[tuple[str, str], TokenizedTexts] = {}
        if assets is not None:
            self._restore(assets)
            return
        with_each(settings.tasks, self._learn)
        self.tokenizer = self._made_tokenizer()
        with_each(settings.tasks, lambda name: [self._split(name, split) for split in SPLITS])
        self._rows.clear()

    @classmethod
    def from_assets(cls, settings: MultitaskSettings, folder: Path) -> MultitaskData:
        """The same module from a run's assets: its tokenizer and labels, not those of the files.

        A file is read if it is asked for, to evaluate on.
        """
        return cls(settings, assets=folder)

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer, and the tasks with their heads and label names."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        tasks = {
            name: {
                "kind": task.kind,
                "pairs": task.pairs,
                "heads": [dataclasses.asdict(head) for head in task.heads],
            }
            for name, task in self.tasks.items()
        }
        text = json.dumps({"tasks": tasks}, ensure_ascii=False, indent=2)
        (folder / TASKS_FILE).write_text(text + "\n", encoding="utf-8")

    def heads(self) -> tuple[Head, ...]:
        """The heads of all tasks, in order."""
        return tuple(head for task in self.tasks.values() for head in task.heads)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token id that fills up a batch."""
        pad_id: int = self.tokenizer.pad_token_id
        return pad_id

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read, by the task that reads most."""
        return max(task.max_tokens for task in self.tasks.values())

    def train(self) -> Loaders:
        """The training part of each task, shuffled."""
        return self._loaders("train")

    def validation(self) -> Loaders | None:
        """The validation part of each task that has one, or None if none has."""
        return self._loaders("validation") or None

    def test(self) -> Loaders | None:
        """The test part of each task that has one, or None if none has."""
        return self._loaders("test") or None

    def metrics(self) -> dict[str, dict[str, Metrics | Fed]]:
        """The metrics by task, head and name; those of exits by task and name."""
        return {
            name: {
                **{head.name: metrics_of(head) for head in task.heads},
                **(exit_metrics() if any(head.exits for head in task.heads) else {}),
            }
            for name, task in self.tasks.items()
        }

    def predict(self, lines: Sequence[str]) -> Iterator[Batch]:
        """Batches without labels: for some lines at a time, one of each task that answers them.

        A line is a text, a JSON object {"text": ..., "task": ...}, or, where a task reads pairs,
        two texts with a tab between them. Raises DataError for lines that nothing can answer.
        """
        pairs = any(task.pairs for task in self.tasks.values())
        first_line: int = getattr(lines, "first_line", 1)
        requests = parse_lines(lines, tasks=self.tasks, pairs=pairs, first_line=first_line)
        size = self.settings.evaluation_batch_size
        for start in range(0, len(requests), size):
            some = requests[start : start + size]
            yield from batches_of(some, tasks=self.tasks, tokenizer=self.tokenizer)

    def decode(self, outputs: Mapping[str, Any], batch: Batch) -> list[dict[str, Any]]:
        """One object a line, by task and head, with the last batch of some lines; else none."""
        return answers_to(outputs, batch, tasks=self.tasks)

    def describe(self) -> str:
        """How many rows each task trains on and validates on, and what is to be said of them."""
        sizes = ", ".join(
            f"{name} {'/'.join(str(len(texts)) for texts in self._sizes(name))}"
            for name in self.tasks
        )
        notes = "".join(
            f"; {name}: {count} {what}"
            for name, task in self.tasks.items()
            for what, count in task.notes.items()
        )
        return shorten(sizes + notes, width=150, placeholder=" ...")

    # ------------------------------------------------------------------------------- inside

    def _restore(self, folder: Path) -> None:
        """The tokenizer and the tasks that `save_assets` wrote."""
        self.tokenizer = saved_tokenizer(folder / "tokenizer")
        saved = json.loads((folder / TASKS_FILE).read_text(encoding="utf-8"))
        for name, task in saved["tasks"].items():
            if name not in self.settings.tasks:
                raise DataError(
                    f"the run has a task '{name}', and data_settings.tasks has none of that name",
                    hint=f"tasks there: {', '.join(self.settings.tasks)}",
                )
            heads = [Head(**{**head, **tupled(head)}) for head in task["heads"]]
            self._add(name, heads=heads, pairs=task["pairs"])

    def _add(self, name: str, *, heads: Sequence[Head] = (), pairs: bool = False) -> Task:
        settings = self.settings.tasks[name]
        self.tasks[name] = KINDS[settings.kind](
            name,
            settings,
            max_tokens=settings.max_tokens or self.settings.max_tokens,
            heads=heads,
            pairs=pairs,
        )
        return self.tasks[name]

    def _learn(self, name: str) -> None:
        """Read all of a task, and give it the labels of its training rows. Raises DataError."""
        task = self._add(name)
        for split in SPLITS:
            self._read(name, split)
        parts = self._sources(name)
        part = parts.of("train")
        assert part is not None
        rows, _ = self._read(name, "train")
        if parts.held_out:
            # A rare label may be in the rows held out alone: the file is one, so it is known.
            rows = [*rows, *self._read(name, "validation")[0]]
        task.learn(rows, part)
        if task.settings.exits:
            task.heads = (head_with_exits(task),)

    def _sources(self, name: str) -> Parts:
        if name not in self._parts:
            settings = self.settings.tasks[name]
            self._parts[name] = Parts(name, settings, seed=self.settings.seed)
        return self._parts[name]

    def _read(self, name: str, split: str) -> tuple[list[Any], str]:
        """The rows of a split, which may be a part of the training rows, and what they are called.

        Empty if there is no such split.
        """
        if (name, split) in self._rows:
            return self._rows[name, split]
        parts, task = self._sources(name), self.tasks[name]
        held_out = split != "test" and parts.held_out
        part = parts.of("train" if held_out else split)
        if part is None:
            return [], ""
        rows = task.read(part)
        self._rows[name, split] = rows, part.where
        if held_out:
            kept, held = parts.divided(rows, where=part.where)
            self._rows[name, "train"] = kept, part.where
            self._rows[name, "validation"] = held, part.where
        return self._rows[name, split]

    def _made_tokenizer(self) -> Any:
        """The encoder's tokenizer, or one trained on all texts; with marks if they are needed."""
        settings = self.settings
        if settings.tokenizer:
            tokenizer = pretrained_tokenizer(settings.tokenizer)
            if not tokenizer.is_fast:
                raise DataError(
                    f"the tokenizer of {settings.tokenizer} cannot tell where in a text its tokens "
                    "are",
                    hint="give one that has a tokenizer.json (a fast tokenizer)",
                )
        else:
            tokenizer = trained_tokenizer(
                (
                    text
                    for name, task in self.tasks.items()
                    for text in task.texts(self._read(name, "train")[0])
                ),
                vocabulary_size=settings.vocabulary_size,
                pairs=any(task.pairs for task in self.tasks.values()),
            )
        if any(isinstance(task, Relations) for task in self.tasks.values()):
            tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
        return tokenizer

    def _split(self, name: str, split: str) -> TokenizedTexts | None:
        """A split of a task, read and tokenised once; None if there is none."""
        if (name, split) not in self._encoded:
            rows, where = self._read(name, split)
            if not rows:
                return None
            self._encoded[name, split] = self.tasks[name].encode(
                rows, tokenizer=self.tokenizer, where=where
            )
        return self._encoded[name, split]

    def _loaders(self, split: str) -> Loaders:
        found = {name: self._split(name, split) for name in self.tasks}
        return {
            name: self._loader(name, texts, training=split == "train")
            for name, texts in found.items()
            if texts is not None
        }

    def _loader(self, name: str, texts: TokenizedTexts, *, training: bool) -> DataLoader[Any]:
        settings, task = self.settings, self.settings.tasks[name]
        size = (
            task.batch_size or settings.batch_size
            if training
            else task.evaluation_batch_size or settings.evaluation_batch_size
        )
        return loader(
            texts,
            padding=Padding(self.pad_id, self.tasks[name].per_token),
            batch_size=size,
            shuffle=training,
            bucketed=settings.bucketed,
            seed=settings.seed,
            num_workers=settings.num_workers,
        )

    def _sizes(self, name: str) -> list[TokenizedTexts]:
        found = (self._encoded.get((name, split)) for split in SPLITS)
        return [texts for texts in found if texts is not None]


def check_names(settings: MultitaskSettings) -> None:
    """Refuse tasks that cannot be told apart, or that are called what they cannot be."""
    if not settings.tasks:
        raise DataError(
            "data_settings.tasks has no task",
            hint='give it one: [data_settings.tasks.NAME] with kind and train = "FILE"',
        )
    seen: dict[str, str] = {}
    for name in settings.tasks:
        plain = name.strip().lower()
        if plain in seen:
            raise DataError(
                f"data_settings.tasks has '{seen[plain]}' and '{name}', which are one name in a "
                "file system and to a reader",
                hint="give one of them another name",
            )
        if plain in RESERVED:
            raise DataError(
                f"a task cannot be called '{name}'",
                hint=f"an answer to a line has its own {plain} under that name",
            )
        seen[plain] = name


def with_each(tasks: Iterable[str], do: Callable[[str], object]) -> None:
    """Do something with every task, whatever becomes of the others.

    Raises DataError afterwards: a single one as it is, several as a list.
    """
    problems: list[DataError] = []
    for name in tasks:
        try:
            do(name)
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError(
            f"{len(problems)} tasks cannot be used",
            hint=[line for error in problems for line in (error.message, *error.hint)],
        )


def tupled(head: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The lists of a saved head as the tuples they were."""
    return {name: tuple(value) for name, value in head.items() if isinstance(value, list)}
