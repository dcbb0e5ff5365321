"""What a section of the table holds: times, and goals with their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from plugin_trainer.ops.bench.interleaved import Timed


@dataclass(frozen=True)
class Goal:
    """One thing that must be reached.

    what    of which op, at which work
    wanted  in words
    figure  what was measured, in words
    holds   whether it is reached
    """

    what: str
    wanted: str
    figure: str
    holds: bool


@dataclass(frozen=True)
class Table:
    """Rows under a heading; the first column is words, the others are figures."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A part of the table: what was measured, and what must be reached."""

    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Everything, for a file."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Section:
        """What `values` gave."""
        return cls([Table(**t) for t in values["tables"]], [Goal(**g) for g in values["goals"]])


HEADS = ("ms", "x ours", "of probe", "error")


def timed_table(title: str, timed: Sequence[Timed]) -> Table:
    """One row a variant, the first being ours."""
    rows = []
    for one in timed:
        error = "" if math.isnan(one.error) else f"{one.error:.0e}"
        if one.refused:
            rows.append((one.name, one.refused, "", "", error))
            continue
        share = f"{100 * one.of_probe:.0f} %" if one.probe else ""
        rows.append(
            (one.name, f"{1e3 * one.median_s:.3f}", f"{one.over(timed[0]):.2f}", share, error)
        )
    return Table(title, HEADS, rows)


def slower_by(what: str, peer: str, over: float, wanted: float) -> Goal:
    """A peer must take at least `wanted` times as long as ours."""
    return Goal(
        what, f"{wanted:g} x {peer}", _figure(over, f"{over:.2f} x"), round(over, 2) >= wanted
    )


def share_of_probe(what: str, timed: Timed, wanted: float) -> Goal:
    """Ours must reach this share of the probe's bandwidth."""
    share = timed.of_probe
    return Goal(
        what,
        f"{100 * wanted:.0f} % of the probe",
        _figure(share, f"{100 * share:.0f} %"),
        round(share, 2) >= wanted,
    )


def at_most(what: str, value: float, wanted: float, *, unit: str = "") -> Goal:
    """A figure must not exceed `wanted`."""
    return Goal(
        what, f"at most {wanted:g}{unit}", _figure(value, f"{value:.2g}{unit}"), value <= wanted
    )


def fastest(timed: Sequence[Timed]) -> Timed:
    """The one with the shortest median of those that were timed; the first if none was."""
    return min(timed, key=lambda one: math.inf if one.refused else one.median_s)


def named(timed: Sequence[Timed], name: str) -> Timed:
    """The variant of this name."""
    return next(one for one in timed if one.name == name)


def _figure(value: float, text: str) -> str:
    return "not measured" if math.isnan(value) else text
