"""What a line of input asks for: a text, or a JSON object that says more."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.records import parse_object
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.marks import MARK

WORD = re.compile(r"[@#]?\w+(?:[-.:/&]\w+)*|['\u2019]\w{1,2}\b|[^\w\s]")
"""A word, with an inner hyphen or dot; a short ending such as 's; or a sign."""

EXAMPLE = '{"task": "...", "text": "..."}'


@dataclass(frozen=True)
class Request:
    """One line of input.

    text       as it was given; of a request in words, these with spaces between them
    text_pair  the second text of a pair, or None
    tokens     the words, if they were given one by one
    tasks      the tasks that are asked; None: all that can answer
    at         what a message calls the line
    """

    text: str
    at: str
    text_pair: str | None = None
    tokens: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None

    def words(self) -> list[tuple[int, int]]:
        """Where each word of the text begins and ends; marks are no words."""
        if self.tokens is None:
            # Blanked out, not taken out: places in the text stay what they are.
            bare = MARK.sub(lambda mark: " " * len(mark[0]), self.text)
            return [found.span() for found in WORD.finditer(bare)]
        spans, start = [], 0
        for token in self.tokens:
            spans.append((start, start + len(token)))
            start += len(token) + 1
        return spans


def parse_lines(
    lines: Sequence[str], *, tasks: Collection[str], pairs: bool, first_line: int
) -> list[Request]:
    """The request of each line. Raises DataError, which tells of all the broken ones at once.

    tasks  the tasks that there are
    pairs  whether any of them reads two texts: then a tab parts a line in two
    """
    broken = BrokenRows("the input")
    requests = []
    for number, line in enumerate(lines, start=first_line):
        try:
            requests.append(parse(line.rstrip("\r\n"), tasks=tasks, pairs=pairs, number=number))
        except DataError as error:
            broken.add(error)
    broken.check()
    return requests


def parse(line: str, *, tasks: Collection[str], pairs: bool, number: int) -> Request:
    """The request of one line. Raises DataError for one that is none."""
    at = f"line {number}"
    if line.lstrip().startswith("{") and line.rstrip().endswith("}"):
        return request_of(parse_object(line, at=at), tasks=tasks, at=at)
    first, tab, second = line.partition("\t")
    if pairs and tab:
        return Request(first, at, text_pair=second)
    return Request(line, at)


def request_of(fields: dict[str, Any], *, tasks: Collection[str], at: str) -> Request:
    """The request of a JSON object; what it has beside the known keys is left alone."""
    asked = fields.get("task")
    chosen = None if asked is None else tuple([asked] if isinstance(asked, str) else asked)
    for task in chosen or ():
        if task not in tasks:
            raise DataError(
                f"{at}: there is no task {task!r}{suggestion(str(task), known=tasks)}",
                hint=f"tasks: {', '.join(tasks)}",
            )
    text, pair, tokens = fields.get("text"), fields.get("text_pair"), fields.get("tokens")
    if isinstance(tokens, list) and tokens and all(isinstance(one, str) for one in tokens):
        return Request(" ".join(tokens), at, tokens=tuple(tokens), tasks=chosen)
    if not isinstance(text, str) or not (pair is None or isinstance(pair, str)):
        seen = ", ".join(fields) or "none"
        raise DataError(
            f"{at}: a JSON object without a text; its keys: {json.dumps(seen)[1:-1]}",
            hint=f'write {EXAMPLE}, with "text_pair" for a pair, or "tokens": ["..."] for words',
        )
    return Request(text, at, text_pair=pair, tasks=chosen)
