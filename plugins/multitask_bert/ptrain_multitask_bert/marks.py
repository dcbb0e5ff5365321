"""Two spans of a text are marked: <e1> ... </e1> and <e2> ... </e2>, each once, none in another."""

from __future__ import annotations

import re
from textwrap import shorten

from plugin_trainer.errors import DataError
from ptrain_multitask_bert.heads import MARKS

MARK = re.compile("|".join(map(re.escape, MARKS)))


def check_marks(text: str, *, at: str) -> None:
    """Raise DataError for a text whose marks are not as they must be.

    at  where the message says it stands
    """
    found = MARK.findall(text)
    shown = repr(shorten(text, width=60, placeholder=" ..."))
    hint = 'mark both spans, as in "<e1>Maria</e1> works for <e2>Acme</e2>"'
    if missing := [mark for mark in MARKS if mark not in found]:
        raise DataError(f"{at}: no {' and no '.join(missing)} in {shown}", hint=hint)
    if len(found) > len(MARKS):
        twice = next(mark for mark in MARKS if found.count(mark) > 1)
        raise DataError(f"{at}: {twice} comes more than once in {shown}", hint=hint)
    for first, second in (found[:2], found[2:]):
        if second != first.replace("<", "</", 1):
            raise DataError(f"{at}: {first} is followed by {second} in {shown}", hint=hint)
    for name in ("e1", "e2"):
        if not text.partition(f"<{name}>")[2].partition(f"</{name}>")[0].strip():
            raise DataError(f"{at}: nothing between <{name}> and </{name}> in {shown}", hint=hint)


def has_marks(text: str) -> bool:
    """Whether there is any mark in a text, so that a relation may be asked of it."""
    return MARK.search(text) is not None


def without_marks(text: str) -> str:
    """The text as it was before it was marked."""
    return MARK.sub("", text)
