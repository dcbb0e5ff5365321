"""Notice that exits have collapsed: a rule by which nearly all rows leave at one block is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugin_trainer.early_exit.certify import Certified

COLLAPSED = 0.95
"""Exits have collapsed when more than this share of the rows leaves at one block."""

_WIDTH = 80


def collapse_warning(exits: Sequence[int]) -> str:
    """What to tell of exits that have collapsed, and what to do; empty if they have not.

    exits  how many rows leave after each block
    """
    rows, most = sum(exits), max(exits, default=0)
    if len(exits) < 2 or most <= COLLAPSED * rows:
        return ""
    block = exits.index(most) + 1
    cure = (
        "no block before it is sure of its answer; train longer, or with loss = 'joint'"
        if block == len(exits)
        else f"a model that ends at block {block} does the same; train one, or promise less"
    )
    share = f"{100 * most / rows:.0f} % of rows leave at block {block}"
    return f"{share}: the exits have collapsed; {cure}"


def collapse_lines(certified: Iterable[Certified]) -> list[str]:
    """A warning for each promise at whose level the exits have collapsed, in 80 columns."""
    lines = []
    for item in certified:
        if warning := collapse_warning(item.exits):
            lines += wrap(f"warning: at {100 * item.max_disagreement:g}%, {warning}", width=_WIDTH)
    return lines
