"""Texts with two marked spans, and the relation between the two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import LABEL_NAMES, Columns
from plugin_trainer.data.texts.labels import Labels
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.data.texts.tokenized import TokenizedTexts, joined
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.alignment import Pieces, to_pieces
from ptrain_multitask_bert.classification import answers_of, as_table, read_rows
from ptrain_multitask_bert.heads import MARKS
from ptrain_multitask_bert.marks import check_marks, has_marks
from ptrain_multitask_bert.parts import Part
from ptrain_multitask_bert.questions import Question
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.semeval import read_semeval
from ptrain_multitask_bert.tasks import Encoded, Task

DEFAULT_HEAD = "relation"


class Relations(Task):
    """One label for two marked spans of a text."""

    kind = "relations"

    def read(self, part: Part) -> list[Row]:
        """The rows of a table, a split, a SemEval file or the generator; all with their marks."""
        if part.path is not None and part.path.suffix.lower() == ".txt":
            rows = read_semeval(part.path, key=part.key, table=self.table)
        else:
            rows = read_rows(
                part,
                columns=self._columns,
                settings=self.settings,
                known_labels=self._question.settings.labels,
            )
        broken = BrokenRows(part.where)
        for row in rows:
            try:
                check_marks(row.text, at=f"{part.where}:{row.line}")
            except DataError as error:
                broken.add(error)
        broken.check()
        return rows

    def learn(self, rows: Sequence[Row], part: Part) -> None:
        """The relations that are declared, else those of the rows."""
        declared: Sequence[str] = ()
        if part.split is not None:
            table = as_table(part, columns=self._columns, settings=self.settings)
            declared = table.label_names
        labels = [row.label for row in rows]
        self.heads = (
            self._question.head(labels, declared={"": tuple(declared)}, where=part.where),
        )

    def texts(self, rows: Iterable[Row]) -> Iterator[str]:
        """The texts with their marks."""
        return (row.text for row in rows)

    def encode(self, rows: Sequence[Row], *, tokenizer: Any, where: str) -> TokenizedTexts:
        """A text that is too long is cut on both sides of its marks."""
        (head,) = self.heads
        labels = Labels(head.labels, listed_in=f"{self._question.table}.labels")
        numbers = labels.numbers(rows, path=where)
        return self._encoded(
            [row.text for row in rows],
            tokenizer=tokenizer,
            places=[f"{where}:{row.line}" for row in rows],
            where=where,
            per_row={f"labels_{head.name}": torch.tensor(numbers)},
        )

    def why_not(self, request: Request) -> str:
        """It asks for marks, and cannot guess them."""
        return "" if has_marks(request.text) else "no spans are marked, with <e1> and <e2>"

    def encode_requests(self, requests: Sequence[Request], *, tokenizer: Any) -> Encoded:
        """Raises DataError for marks that are not as they must be."""
        broken = BrokenRows("the input")
        for request in requests:
            try:
                check_marks(request.text, at=request.at)
            except DataError as error:
                broken.add(error)
        broken.check()
        texts = self._encoded(
            [request.text for request in requests],
            tokenizer=tokenizer,
            places=[request.at for request in requests],
            where="the input",
        )
        return texts, [{} for _ in requests]

    def answers(
        self,
        logits: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        about: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """Label and probabilities."""
        del batch, about
        (head,) = self.heads
        return [{head.name: answer} for answer in answers_of(head, logits[head.name])]

    # ------------------------------------------------------------------------------- inside

    @property
    def _question(self) -> Question:
        name, head, table = self.only_head(DEFAULT_HEAD)
        column = self.settings.label if head.column == "auto" else head.column
        return Question(self.name, name, "relation", head, column, True, table)

    @property
    def _columns(self) -> Columns:
        settings = self.settings
        return Columns(
            settings.text,
            self._question.column,
            text_pair="",
            labels=(*LABEL_NAMES, "relation"),
            table=self.table,
        )

    def _encoded(
        self,
        texts: Sequence[str],
        *,
        tokenizer: Any,
        places: Sequence[str],
        where: str,
        per_row: Mapping[str, Tensor] | None = None,
    ) -> TokenizedTexts:
        marks = [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
        ids, segments, positions = [], [], []
        broken = BrokenRows(where)
        pieces_of_all = to_pieces([spaced(text) for text in texts], tokenizer=tokenizer)
        for pieces, at in zip(pieces_of_all, places, strict=True):
            try:
                start = window_start(pieces, marks, max_tokens=self.max_tokens, at=at)
            except DataError as error:
                broken.add(error)
                continue
            row, types = pieces.window(start, max_tokens=self.max_tokens)
            ids.append(row)
            segments.append(types or [])
            positions.append([row.index(marks[0]), row.index(marks[2])])
        broken.check()
        return joined(
            ids,
            segments if any(segments) else None,
            pad_id=tokenizer.pad_token_id,
            per_row={"mark_positions": torch.tensor(positions), **(per_row or {})},
        )


def spaced(text: str) -> str:
    """The text with the space before a marked span inside of its marks.

    So its first word is tokenised as it would be without marks: some tokenizers (RoBERTa's) write
    the space before a word into it.
    """
    text = re.sub(r"\s*(<e[12]>)\s*", r"\1 ", text)
    return re.sub(r"\s*(</e[12]>)", r"\1", text)


def window_start(pieces: Pieces, marks: Sequence[int], *, max_tokens: int, at: str) -> int:
    """The first piece to read, so that all marks are read and as much on both sides of them.

    Raises DataError if the marks are too far apart for that.
    """
    places = [pieces.ids.index(mark) - pieces.before for mark in marks]
    first, last, room = min(places), max(places), pieces.room(max_tokens)
    if last - first + 1 > room:
        raise DataError(
            f"{at}: the marked spans take {last - first + 1} tokens, and {room} are read of a text",
            hint="raise max_tokens of the task, as far as the encoder takes it, or remove the row",
        )
    middle = first - (room - (last - first + 1)) // 2
    return max(0, min(middle, len(pieces) - room))
