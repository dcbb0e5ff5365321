"""Sentences with a tag for every word, and from tags back to entities in a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import IGNORED_LABEL
from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.tokenized import TokenizedTexts, joined
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.alignment import Aligned, align
from ptrain_multitask_bert.conll import read_conll
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.parts import Part
from ptrain_multitask_bert.questions import class_weights
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.tagged_rows import read_tagged
from ptrain_multitask_bert.tags import OUTSIDE, NoTag, Sentence, scheme_of, tag_names, to_bio
from ptrain_multitask_bert.tasks import Encoded, Task

DEFAULT_HEAD = "entities"
REPAIRED = "tags repaired"
CUT = "words cut off"


class Entities(Task):
    """One tag for every word, in BIO."""

    kind = "entities"

    @property
    def per_token(self) -> tuple[str, ...]:
        """The labels, and in prediction which word a token is the first piece of."""
        return (*(f"labels_{head.name}" for head in self.heads), "word")

    def read(self, part: Part) -> list[Sentence]:
        """The sentences with their tags in BIO, however they are written."""
        if part.path is not None and part.path.suffix != ".jsonl":
            sentences = read_conll(
                part.path,
                key=part.key,
                table=self.table,
                tokens=self.settings.tokens,
                tags=self.settings.tags,
            )
        else:
            sentences = read_tagged(part, settings=self.settings)
        scheme: str = self.settings.scheme
        if scheme == "auto":
            scheme = scheme_of(sentence.tags for sentence in sentences)
        broken, repaired = BrokenRows(part.where), 0
        in_bio = []
        for sentence in sentences:
            tags, problems = to_bio(sentence, scheme=scheme, table=self.table)
            in_bio.append(Sentence(sentence.words, tags, sentence.places))
            for problem in problems:
                if self.settings.broken_tags == "error" or isinstance(problem, NoTag):
                    broken.add(problem)
                else:
                    repaired += 1
        broken.check()
        self._note(REPAIRED, repaired)
        return in_bio

    def learn(self, rows: Sequence[Sentence], part: Part) -> None:
        """The types that the settings list, else those of the rows, each with B- and I-."""
        name, settings, table = self.only_head(DEFAULT_HEAD)
        seen = {tag.partition("-")[2] for row in rows for tag in row.tags} - {""}
        types = tuple(settings.labels) or tuple(sorted(seen))
        if not seen:
            raise DataError(
                f"{part.where}: none of its {len(rows)} sentences has an entity",
                hint=f"the tags are all {OUTSIDE}; is {self.table}.tags the right column?",
            )
        names = tag_names(types)
        self.heads = (
            Head(
                task=self.name,
                name=name,
                kind="tokens",
                labels=names,
                weight=settings.weight,
                class_weights=class_weights(settings.class_weights, names, table=table),
            ),
        )

    def texts(self, rows: Iterable[Sentence]) -> Iterator[str]:
        """The words with spaces between them."""
        return (" ".join(row.words) for row in rows)

    def encode(self, rows: Sequence[Sentence], *, tokenizer: Any, where: str) -> TokenizedTexts:
        """The label of a word is that of its first piece. Words that do not fit are counted."""
        (head,) = self.heads
        numbers = {tag: number for number, tag in enumerate(head.labels)}
        broken = BrokenRows(where)
        read: list[Aligned] = []
        labels: list[list[int]] = []
        aligned = align(
            [row.words for row in rows], tokenizer=tokenizer, max_tokens=self.max_tokens
        )
        for row, one in zip(rows, aligned, strict=True):
            word, pieces = one.longest
            if pieces > one.room:
                broken.add(self._too_long(row, word, pieces=pieces, room=one.room))
            read.append(one)
            for place, tag in zip(row.places, row.tags, strict=True):
                if tag not in numbers:
                    broken.add(self._unknown(tag, head, at=place))
            labels.append(
                [
                    IGNORED_LABEL if word == IGNORED_LABEL else numbers.get(row.tags[word], 0)
                    for word in one.words
                ]
            )
            self._note(CUT, len(row.words) - one.read)
        broken.check()
        return self._joined(read, tokenizer, per_token={f"labels_{head.name}": labels})

    def why_not(self, request: Request) -> str:
        """It reads any one text."""
        return "it reads single texts" if request.text_pair is not None else ""

    def encode_requests(self, requests: Sequence[Request], *, tokenizer: Any) -> Encoded:
        """The words of each text as pieces, and where they stand in it."""
        spans = [request.words() for request in requests]
        words = [
            [request.text[start:end] for start, end in its]
            for request, its in zip(requests, spans, strict=True)
        ]
        about: list[Mapping[str, Any]] = [
            {"text": request.text, "spans": its}
            for request, its in zip(requests, spans, strict=True)
        ]
        read = list(align(words, tokenizer=tokenizer, max_tokens=self.max_tokens))
        return self._joined(read, tokenizer, per_token={"word": [one.words for one in read]}), about

    def answers(
        self,
        logits: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        about: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """The entities of each text, in order; and how many of its words were not read, if any."""
        (head,) = self.heads
        probabilities_BTC = torch.softmax(logits[head.name].float(), dim=-1)
        best_BT = probabilities_BTC.max(dim=-1)
        answers = []
        for row, one in enumerate(about):
            known_T = batch["word"][row] != IGNORED_LABEL
            tags = [head.labels[number] for number in best_BT.indices[row][known_T].tolist()]
            sure = best_BT.values[row][known_T].tolist()
            words = batch["word"][row][known_T].tolist()
            spans = [one["spans"][word] for word in words]
            answer: dict[str, Any] = {
                head.name: found_entities(tags, spans, sure, text=one["text"])
            }
            if missed := len(one["spans"]) - len(words):
                answer["words_not_read"] = missed
            answers.append(answer)
        return answers

    # ------------------------------------------------------------------------------- inside

    def _note(self, what: str, count: int) -> None:
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def _joined(
        self,
        read: Sequence[Aligned],
        tokenizer: Any,
        *,
        per_token: Mapping[str, Sequence[Sequence[int]]],
    ) -> TokenizedTexts:
        segments = [one.segments or [] for one in read]
        return joined(
            [one.ids for one in read],
            segments if any(segments) else None,
            pad_id=tokenizer.pad_token_id,
            per_token=per_token,
        )

    def _too_long(self, row: Sentence, word: int, *, pieces: int, room: int) -> DataError:
        shown = row.words[word] if len(row.words[word]) <= 30 else row.words[word][:27] + "..."
        return DataError(
            f"{row.places[word]}: {shown!r} is {pieces} tokens long, and {room} are read of a text",
            hint=f"shorten or remove the word, or raise {self.table}.max_tokens",
        )

    def _unknown(self, tag: str, head: Head, *, at: str) -> DataError:
        kind = tag.partition("-")[2]
        types = [name.partition("-")[2] for name in head.labels[1::2]]
        return DataError(
            f"{at}: unknown type of entity {kind!r}{suggestion(kind, known=types)}",
            hint=(
                f"types: {', '.join(types)}",
                f"correct the tag, or list the type in {self.table}.labels",
            ),
        )


def found_entities(
    tags: Sequence[str], spans: Sequence[tuple[int, int]], sure: Sequence[float], *, text: str
) -> list[dict[str, Any]]:
    """The entities that the tags of some words mark, with their places in the text.

    sure  the probability of each tag; an entity has that of its least certain word

    An I- that goes on with nothing begins an entity, as the metrics count it.
    """
    found: list[dict[str, Any]] = []
    before = ""
    for tag, (start, end), probability in zip(tags, spans, sure, strict=True):
        prefix, _, kind = tag.partition("-")
        if tag == OUTSIDE:
            pass
        elif prefix == "I" and before == kind:
            last = found[-1]
            last["end"], last["text"] = end, text[last["start"] : end]
            last["probability"] = min(last["probability"], probability)
        else:
            one = {"type": kind, "text": text[start:end], "start": start, "end": end}
            found.append({**one, "probability": probability})
        before = kind
    return found
