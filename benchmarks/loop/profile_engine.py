"""Where the engine's time goes: its most expensive functions, in microseconds per step.

    python -m benchmarks.loop.profile_engine [--only NAME] [--top N]

The profiler itself adds about a microsecond to each call of a Python function, so that the sum is
more than a step takes: the order says more than the figures.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from collections.abc import Sequence
from pathlib import Path

from . import timing
from .contestants import CONTESTANTS
from .tiny import LOG_EVERY

TURNS = 10


def main() -> None:
    """Profile the timed steps of one contestant and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop.profile_engine")
    parser.add_argument("--only", metavar="NAME", default="engine", choices=list(CONTESTANTS))
    parser.add_argument("--top", metavar="N", type=int, default=30)
    arguments = parser.parse_args()
    profile = cProfile.Profile()

    def between(turns: Sequence[timing.Turn]) -> None:
        if not turns:
            profile.enable()
        elif len(turns) == TURNS:
            profile.disable()

    train = CONTESTANTS[arguments.only].load()
    timing.run(train, turns=TURNS, stopwatch=timing.Stopwatch(between))
    sys.stdout.write("\n".join(table(pstats.Stats(profile), top=arguments.top)) + "\n")


def table(stats: pstats.Stats, *, top: int) -> list[str]:
    """One line a function: calls a step, its own time, and that of all it calls."""
    # file, line, name -> primitive calls, calls, own seconds, seconds with all it calls, callers
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    steps = TURNS * LOG_EVERY
    lines = [f"{'calls':>6} {'own us':>8} {'all us':>8}  function"]
    for (file, line, name), (_, calls, own, everything, _) in rows[:top]:
        where = f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name
        per_step = 1e6 / steps
        lines.append(
            f"{calls / steps:6.1f} {own * per_step:8.1f} {everything * per_step:8.1f}  {where[:54]}"
        )
    return lines


if __name__ == "__main__":
    main()
