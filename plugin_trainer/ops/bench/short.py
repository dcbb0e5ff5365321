"""The short table behind `ptrain kernels bench`: each kernel beside what one would write without.

Under a minute on two cores. Nothing is printed of a variant whose result is wrong but that it is.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_trainer.ops.bench import ema, halting, step
from plugin_trainer.ops.bench.interleaved import Probe, Timed, Variant, machine, measure
from plugin_trainer.ops.bench.shapes import LISTS

ROUNDS, BUDGET_S = 15, 5.0
WIDTH = 80


@dataclass(frozen=True)
class Case:
    """One piece of work, and who does it: ours first."""

    op: str
    work: str
    variants: Sequence[Variant]
    probe: Probe | None = None


def run_short_bench(
    echo: Callable[[str], object],
    *,
    as_json: bool = False,
    cases: Iterator[Case] | None = None,
    rounds: int = ROUNDS,
) -> None:
    """Measure and print, line by line as the figures come, or as one JSON document.

    echo    prints one line
    cases   what to measure; default: the moving average and the fused step on the tensors of MiniLM
            and on 2,000 small ones, the halting loss of sentences and of tokens
    rounds  turns of each variant
    """
    rows: list[dict[str, Any]] = []
    if not as_json:
        for line in textwrap.wrap(machine(), WIDTH):
            echo(line)
        echo("\nmedians of turns taken in one run; x: the time over ours, round by round\n")
        echo(f"{'':<47}{'ms':>9}{'x':>8}{'of limit':>10}")
    for case in cases if cases is not None else short_cases():
        timed = measure(case.variants, rounds=rounds, probe=case.probe, budget_s=BUDGET_S)
        rows += [_values(case, one, timed[0]) for one in timed]
        if not as_json:
            echo(f"{case.op}, {case.work}")
            for one in timed:
                for line in _lines(one, timed[0]):
                    echo(line)
    if as_json:
        echo(json.dumps({"machine": machine(), "rows": rows}, indent=2))
    else:
        echo("\nof limit: of the bandwidth at which this machine updates one flat array in place")


def short_cases() -> Iterator[Case]:
    """The work of the short table, made when it is its turn: its memory is let go of after."""
    for name in ("MiniLM", "2,000 x 256"):
        averages = ema.Work(LISTS[name])
        yield Case(
            "EMA",
            name,
            [ema.ours(averages), ema.foreach_lerp(averages)],
            averages.probe() if name == "MiniLM" else None,
        )
        del averages
    for name in ("MiniLM", "2,000 x 256"):
        weights = step.Work(LISTS[name])
        yield Case(
            "clip + AdamW + EMA",
            name,
            [step.ours(weights), step.fused(weights), step.best_of_torch(weights)],
            weights.probe() if name == "MiniLM" else None,
        )
        del weights
    for size in ((12, 256, 3), (12, 4096, 9)):
        logits = halting.Work(size)
        yield Case(
            "halting loss",
            f"{size}",
            [halting.ours(logits), halting.log_space_eager(logits)],
        )


def _lines(one: Timed, ours: Timed) -> list[str]:
    name = f"  {one.name}"
    if one.refused:
        return textwrap.wrap(
            f"{one.name}: {one.refused}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    ratio = "" if one is ours else f"{one.over(ours):.2f}"
    limit = f"{100 * one.of_probe:.0f} %" if one.probe else ""
    return [f"{name:<47}{1e3 * one.median_s:>9.3f}{ratio:>8}{limit:>10}".rstrip()]


def _values(case: Case, one: Timed, ours: Timed) -> dict[str, Any]:
    return {
        "op": case.op,
        "work": case.work,
        "variant": one.name,
        "ms": _number(1e3 * one.median_s),
        "over_ours": _number(one.over(ours)),
        "of_limit": _number(one.of_probe),
        "error": _number(one.error),
        "refused": one.refused,
    }


def _number(value: float) -> float | None:
    return None if value != value else value  # JSON has no NaN
