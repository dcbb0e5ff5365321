"""The engine with its kernels beside a loop by hand with the same features: benchmarks/loop."""

from __future__ import annotations

from benchmarks.loop import report, timing
from benchmarks.loop.contestants import CONTESTANTS

from .results import Goal, Section, Table

HAND, ENGINE = "hand-cse", ("engine", "engine-default")


def section(*, rounds: int, device: str) -> Section:
    """CPU time per step of a tiny model, on one thread."""
    del device
    contestants = [CONTESTANTS[name] for name in (HAND, *ENGINE)]
    rows = report.summarise(timing.measure(contestants, rounds=2 * rounds))
    found = Section()
    cells = []
    for row in rows:
        over = "" if row.over is None else f"{row.over.median:+.0f}"
        quartiles = "" if row.over is None else "{:+.0f} to {:+.0f}".format(*row.over.quartiles)
        cells.append([row.contestant.title, f"{row.median:.0f}", over, quartiles])
        if row.contestant.name == "engine-default" and row.over is not None:
            found.goals.append(
                Goal(
                    "the engine on a tiny model, default callbacks",
                    "faster than the loop by hand",
                    f"{row.over.median:+.0f} us of {row.median:.0f}",
                    row.over.median < 0,
                )
            )
    heads = ("us of CPU per step", "over by hand", "quartiles")
    title = "the engine: clipping, schedule, EMA (fused AdamW by hand)"
    found.tables.append(Table(title, heads, cells))
    return found
