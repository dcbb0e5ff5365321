"""The sections as text for a terminal, as markdown, and as a part of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .results import Goal, Section

WIDTH = 100


def terminal(name: str, section: Section) -> Iterable[str]:
    """Lines of columns."""
    yield f"== {name}"
    for table in section.tables:
        yield ""
        yield from _columns([table.title, *table.heads], table.rows)
    yield ""
    yield from goals_in_columns(section.goals)
    yield ""


def goals_in_columns(goals: Sequence[Goal]) -> Iterable[str]:
    """What must be reached, and whether it is."""
    yield from _columns(GOAL_HEADS, [_goal_cells(goal) for goal in goals])


def markdown(section: Section) -> Iterable[str]:
    """The figures of a section, one table each."""
    for table in section.tables:
        yield from _markdown([table.title, *table.heads], table.rows)
        yield ""


def goals_in_markdown(goals: Sequence[Goal]) -> Iterable[str]:
    """What must be reached, and whether it is."""
    yield from _markdown(GOAL_HEADS, [_goal_cells(goal) for goal in goals], figures=False)


def put_into(page: str, name: str, text: str) -> str:
    """The page with what stands between the two comments of this name replaced.

    Raises ValueError if the page has no such comments.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of: {name} -->"
    found = re.compile(rf"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if not found.search(page):
        raise ValueError(f"the page has no part between '{begin}' and '{end}'")
    return found.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", page)


def part_of(path: Path, name: str) -> str:
    """What stands there between the two comments of this name."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of: {name} -->"
    return path.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


GOAL_HEADS = ("what", "wanted", "measured", "holds")


def _goal_cells(goal: Goal) -> tuple[str, str, str, str]:
    return goal.what, goal.wanted, goal.figure, "yes" if goal.holds else "NO"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    # A refusal is a sentence, which is no figure to make room for.
    widths = [widths[0], *(min(width, 26) for width in widths[1:])]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


def _markdown(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True
) -> Iterable[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---|" + ("---:|" if figures else "---|") * (len(heads) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")
