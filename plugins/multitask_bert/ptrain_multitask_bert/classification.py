"""Texts or pairs of texts, with labels or numbers for the whole of them under any heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import Columns
from plugin_trainer.data.texts.labels import Labels
from plugin_trainer.data.texts.reading import Row, check_pairs
from plugin_trainer.data.texts.sources import Table, TextFile
from plugin_trainer.data.texts.tokenized import TokenizedTexts, tokenize
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.heads import Head, Kind
from ptrain_multitask_bert.marks import without_marks
from ptrain_multitask_bert.parts import Part
from ptrain_multitask_bert.questions import Answer, Question
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.settings_data import HeadSettings, TaskSettings
from ptrain_multitask_bert.tasks import Encoded, Task

DEFAULT_HEAD = "label"


class Classification(Task):
    """Single labels, sets of labels and numbers for whole texts."""

    kind = "classification"

    def read(self, part: Part) -> list[Row]:
        """The rows of a table, a split or the generator."""
        first = self._questions[0]
        known = first.settings.labels if first.only else ()
        return read_rows(part, columns=self._columns, settings=self.settings, known_labels=known)

    def learn(self, rows: Sequence[Row], part: Part) -> None:
        """The labels that are declared, else those of the rows; and whether rows are pairs."""
        self.pairs = any(row.text_pair is not None for row in rows)
        self.heads = tuple(
            question.head(
                self._answers(question, rows, where=part.where),
                declared=self._declared(part),
                where=part.where,
            )
            for question in self._questions
        )

    def texts(self, rows: Iterable[Row]) -> Iterator[str]:
        """First and second texts."""
        for row in rows:
            yield row.text
            if row.text_pair is not None:
                yield row.text_pair

    def encode(self, rows: Sequence[Row], *, tokenizer: Any, where: str) -> TokenizedTexts:
        """Of two texts that are too long together, the longer one is cut until they fit."""
        check_pairs(rows, pairs=self.pairs, where=where, table=self.table)
        per_row = {
            f"labels_{head.name}": self._targets(question, head, rows, where=where)
            for question, head in zip(self._questions, self.heads, strict=True)
        }
        return tokenize(
            [row.text for row in rows],
            tokenizer=tokenizer,
            max_tokens=self.max_tokens,
            text_pairs=[row.text_pair or "" for row in rows] if self.pairs else None,
            per_row=per_row,
        )

    def why_not(self, request: Request) -> str:
        """A task of pairs asks for two texts, and the others for one."""
        if self.pairs and request.text_pair is None:
            return "it was trained on pairs: a line is first<TAB>second"
        if not self.pairs and request.text_pair is not None:
            return "it was trained on single texts"
        return ""

    def encode_requests(self, requests: Sequence[Request], *, tokenizer: Any) -> Encoded:
        """Marks of a relation are left out."""
        texts = tokenize(
            [without_marks(request.text) for request in requests],
            tokenizer=tokenizer,
            max_tokens=self.max_tokens,
            text_pairs=[request.text_pair or "" for request in requests] if self.pairs else None,
        )
        return texts, [{} for _ in requests]

    def answers(
        self,
        logits: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        about: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """Label and probabilities, labels above the threshold, or a number."""
        del batch
        by_head = {head.name: answers_of(head, logits[head.name]) for head in self.heads}
        return [{name: some[row] for name, some in by_head.items()} for row in range(len(about))]

    # ------------------------------------------------------------------------------- inside

    @property
    def _questions(self) -> list[Question]:
        settings = self.settings
        if not settings.heads:
            only = HeadSettings(labels=settings.labels)
            return [self._question(DEFAULT_HEAD, only, column=settings.label, table=self.table)]
        questions = []
        for name, head in settings.heads.items():
            usual = name if len(settings.heads) > 1 else settings.label
            column = usual if head.column == "auto" else head.column
            table = f"{self.table}.heads.{name}"
            questions.append(self._question(name, head, column=column, table=table))
        return questions

    def _question(
        self, name: str, head: HeadSettings, *, column: str | int, table: str
    ) -> Question:
        kind: Kind = "single_label" if head.kind == "auto" else head.kind
        if head.columns and kind != "multi_label":
            raise DataError(
                f"{table}.columns is set, and the head is of kind {kind}",
                hint=f'set {table}.kind = "multi_label", or name one column in {table}.column',
            )
        only = len(self.settings.heads) < 2 and kind == "single_label"
        return Question(self.name, name, kind, head, column, only, table)

    @property
    def _columns(self) -> Columns:
        settings, questions = self.settings, self._questions
        more = {role: one for asked in questions for role, one in asked.columns.items()}
        label = questions[0].column if questions[0].only else ""
        return Columns(
            settings.text, label, text_pair=settings.text_pair, more=more, table=self.table
        )

    def _declared(self, part: Part) -> dict[str, tuple[str, ...]]:
        if part.split is None:
            return {}
        table = as_table(part, columns=self._columns, settings=self.settings)
        roles = {role: table.declared(role) for role in self._columns.more}
        return {**roles, "": table.label_names if self._columns.label != "" else ()}

    def _answers(self, question: Question, rows: Sequence[Row], *, where: str) -> list[Answer]:
        answers, broken = [], BrokenRows(where)
        for row in rows:
            try:
                answers.append(question.answer(row, at=f"{where}:{row.line}"))
            except DataError as error:
                broken.add(error)
        broken.check()
        return answers

    def _targets(
        self, question: Question, head: Head, rows: Sequence[Row], *, where: str
    ) -> Tensor:
        labels = Labels(head.labels, listed_in=f"{question.table}.labels")
        targets, broken = [], BrokenRows(where)
        answers = self._answers(question, rows, where=where)
        for row, answer in zip(rows, answers, strict=True):
            try:
                targets.append(question.target(answer, labels, at=f"{where}:{row.line}"))
            except DataError as error:
                broken.add(error)
        broken.check()
        return torch.tensor(targets)


def read_rows(
    part: Part, *, columns: Columns, settings: TaskSettings, known_labels: Sequence[str]
) -> list[Row]:
    """The labelled texts of a part.

    known_labels  the label names that the settings list
    """
    if part.path is not None:
        file = TextFile(part.path, part.key, columns, settings.header)
        return file.rows(known_labels=known_labels)
    if part.split is not None:
        table = as_table(part, columns=columns, settings=settings)
        return table.rows(known_labels=known_labels)
    return [
        Row(text=record["text"], label=record["label"], line=number)
        for number, record in enumerate(part.records or (), start=1)
    ]


def as_table(part: Part, *, columns: Columns, settings: TaskSettings) -> Table:
    """A split of a data set, with the columns to read."""
    return Table(part.split, part.where, columns, settings.unlabelled, seed=0)


def answers_of(head: Head, logits: Tensor) -> list[dict[str, Any]]:
    """What a head says of each text."""
    if head.kind == "regression":
        return [{"value": value} for value in logits.float().tolist()]
    if head.kind == "multi_label":
        rows = torch.sigmoid(logits.float()).tolist()
        named = [dict(zip(head.labels, values, strict=True)) for values in rows]
        return [
            {
                "labels": [name for name, value in one.items() if value >= head.threshold],
                "probabilities": one,
            }
            for one in named
        ]
    rows = torch.softmax(logits.float(), dim=-1).tolist()
    named = [dict(zip(head.labels, values, strict=True)) for values in rows]
    return [{"label": max(one, key=one.__getitem__), "probabilities": one} for one in named]
