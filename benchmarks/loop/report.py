"""What was measured, as a table for people and as values for programs."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .contestants import CONTESTANTS, Contestant
from .timing import Turn
from .tiny import LOG_EVERY

PACKAGES = ("torch", "lightning", "transformers", "accelerate")


@dataclass(frozen=True)
class Over:
    """What a loop costs over the hand-written one with the same features, in microseconds per step.

    median, quartiles  of the differences, round by round, in CPU time
    fastest            the difference of the fastest 50 steps of each
    wall               the median difference by the clock
    """

    median: float
    quartiles: tuple[float, float]
    fastest: float
    wall: float


@dataclass(frozen=True)
class Row:
    """One contestant: its median CPU time per step, and what it costs over its hand-written loop;
    None for such a loop.
    """

    contestant: Contestant
    median: float
    over: Over | None


def summarise(turns: Mapping[str, Sequence[Turn]]) -> list[Row]:
    """One row a contestant."""
    rows = []
    for name, mine in turns.items():
        contestant = CONTESTANTS[name]
        hand = turns.get(contestant.against)
        median = statistics.median(turn.cpu for turn in mine)
        rows.append(Row(contestant, median, _over(mine, hand) if hand is not None else None))
    return rows


def _over(mine: Sequence[Turn], hand: Sequence[Turn]) -> Over:
    # Within a round, so that a slow moment of the machine is on both sides of the difference.
    cpu = [a.cpu - b.cpu for a, b in zip(mine, hand, strict=True)]
    first, median, third = statistics.quantiles(cpu, n=4) if len(cpu) > 1 else cpu * 3
    return Over(
        median,
        (first, third),
        min(turn.cpu for turn in mine) - min(turn.cpu for turn in hand),
        statistics.median(a.wall - b.wall for a, b in zip(mine, hand, strict=True)),
    )


def lines(rows: Sequence[Row], *, absent: Sequence[Contestant] = ()) -> list[str]:
    """The table, for a terminal of 80 columns."""
    heads = ("CPU", "over", "quartiles", "fastest", "wall")
    table = [("us per step", *heads), *((row.contestant.title, *_cells(row)) for row in rows)]
    found = [
        f"{title:<32} {cpu:>6} {over:>6} {quartiles:>14} {fastest:>8} {wall:>7}".rstrip()
        for title, cpu, over, quartiles, fastest, wall in table
    ]
    return found + [f"{contestant.title:<32} not installed" for contestant in absent]


def markdown(rows: Sequence[Row], *, absent: Sequence[Contestant] = (), rounds: int) -> list[str]:
    """The machine, and the table, as docs/performance.md has them."""
    found = [
        f"{machine()}. {rounds} rounds of {LOG_EVERY} steps.",
        "",
        "| loop | CPU | over by hand | quartiles | fastest | wall |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    found += [f"| {row.contestant.title} | {' | '.join(_cells(row))} |" for row in rows]
    found += [f"| {contestant.title} | not installed | | | | |" for contestant in absent]
    return found


def values(rows: Sequence[Row], turns: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "machine": machine(),
        "steps_a_turn": LOG_EVERY,
        "rows": [
            {
                "name": row.contestant.name,
                "cpu_us_per_step": row.median,
                "over": row.over and vars(row.over),
            }
            for row in rows
        ],
        "turns": {name: [vars(turn) for turn in own] for name, own in turns.items()},
    }


def machine() -> str:
    """What it ran on, in words."""
    installed = []
    for package in PACKAGES:
        try:
            installed.append(f"{package} {version(package)}")
        except ModuleNotFoundError:
            continue
    python = f"Python {platform.python_version()}"
    return (
        f"{_processor()}, {os.cpu_count()} cores, one thread used; {python}, {', '.join(installed)}"
    )


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in about.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    cpu, over = f"{row.median:.0f}", row.over
    if over is None:
        return cpu, "", "", "", ""
    first, third = over.quartiles
    return (
        cpu,
        f"{over.median:+.0f}",
        f"{first:+.0f} to {third:+.0f}",
        f"{over.fastest:+.0f}",
        f"{over.wall:+.0f}",
    )
