"""What all kinds of tasks have in common: they are read, learn their labels, encode and answer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from plugin_trainer.data.texts.tokenized import TokenizedTexts
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.parts import Part
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.settings_data import HeadSettings, TaskSettings

Encoded = tuple[TokenizedTexts, list[Mapping[str, Any]]]
"""Texts to predict, and what of each is needed to make an answer."""


class Task(ABC):
    """One task: from files to token ids and labels, and from logits to answers.

    name        unique among the tasks
    table       its settings table, for the messages
    max_tokens  how many tokens of a text are read
    heads       what is asked; known when it has learnt its labels, or from a run's assets
    pairs       whether a row has two texts
    notes       what is to be said of its data, such as how many words were cut

    Rows are of the kind that the task's own `read` gives.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        settings: TaskSettings,
        *,
        max_tokens: int,
        heads: Sequence[Head] = (),
        pairs: bool = False,
    ) -> None:
        self.name, self.settings = name, settings
        self.table = f"data_settings.tasks.{name}"
        self.max_tokens = max_tokens
        self.heads = tuple(heads)
        self.pairs = pairs
        self.notes: dict[str, int] = {}

    @property
    def per_token(self) -> tuple[str, ...]:
        """What a batch has one of for each token, and is filled up with -100."""
        return ()

    @abstractmethod
    def read(self, part: Part) -> list[Any]:
        """All rows of a part. Raises DataError, which tells of all the broken ones at once."""

    @abstractmethod
    def learn(self, rows: Sequence[Any], part: Part) -> None:
        """Set the heads, with the labels of the training rows. Raises DataError."""

    @abstractmethod
    def texts(self, rows: Iterable[Any]) -> Iterator[str]:
        """The texts, for a tokenizer that is trained on them."""

    @abstractmethod
    def encode(self, rows: Sequence[Any], *, tokenizer: Any, where: str) -> TokenizedTexts:
        """Token ids and, under labels_<head>, labels. Raises DataError."""

    @abstractmethod
    def why_not(self, request: Request) -> str:
        """Why the task cannot answer a request; empty if it can."""

    @abstractmethod
    def encode_requests(self, requests: Sequence[Request], *, tokenizer: Any) -> Encoded:
        """The requests as token ids. Raises DataError for one that is asked wrongly."""

    @abstractmethod
    def answers(
        self,
        logits: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        about: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """What is said of each request, by head; all JSON-able.

        about  what `encode_requests` gave beside the token ids
        """

    def only_head(self, default: str) -> tuple[str, HeadSettings, str]:
        """Name, settings and settings table of the head, for a kind of task that has one."""
        heads = self.settings.heads
        if not heads:
            return default, HeadSettings(labels=self.settings.labels), self.table
        if len(heads) > 1 or next(iter(heads.values())).kind != "auto":
            raise DataError(
                f"{self.table}.heads: a task of kind '{self.settings.kind}' has one head, whose "
                'kind is "auto"',
                hint="ask other questions of the same texts in a task of their own",
            )
        name, settings = next(iter(heads.items()))
        return name, settings, f"{self.table}.heads.{name}"


def head_with_exits(task: Task) -> Head:
    """The only head of a task, to be asked of every block. Raises DataError if it has several."""
    if len(task.heads) != 1:
        raise DataError(
            f"{task.table}.exits is set, and the task has {len(task.heads)} heads",
            hint="give each of these heads a task of its own, or leave out exits",
        )
    (head,) = task.heads
    asked = task.settings.heads.get(head.name, HeadSettings())
    return dataclasses.replace(head, exits=True, tolerance=asked.tolerance)
