"""Times the steps of a loop from inside its data, in rounds in which everybody runs once.

The clocks are read when a loader makes a batch, every 50 batches: what lies between is whole steps
and nothing else, whoever's loop it is, and neither the set-up of a run nor its end is part of it.
Timing whole runs of two lengths would give the same with the noise of two set-ups; a hook at the
end of a step is not there in every loop, and costs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from .contestants import Contestant
from .tiny import LOG_EVERY, Task

WARM_UP_STEPS = 50
TIMED_STEPS = 8 * LOG_EVERY


@dataclass(frozen=True)
class Burst:
    """Microseconds per step in one short run.

    cpu      of this process, all its threads: what neighbours on the machine disturb least
    fastest  the same in the fastest 50 steps
    wall     by the clock
    """

    cpu: float
    fastest: float
    wall: float


class Stopwatch:
    """A collate function that reads the clocks every 50 batches, once the loop is warm.

    at_first, at_last  are called when the timed steps begin and when they end
    """

    def __init__(
        self,
        *,
        at_first: Callable[[], Any] = lambda: None,
        at_last: Callable[[], Any] = lambda: None,
    ) -> None:
        self._calls = 0
        self._at_first, self._at_last = at_first, at_last
        self._cpu_ns: list[int] = []
        self._wall_ns: list[int] = []

    def __call__(self, rows: list[Any]) -> Any:
        """Make a batch."""
        timed = self._calls - WARM_UP_STEPS
        if timed == TIMED_STEPS:
            self._at_last()
        if 0 <= timed <= TIMED_STEPS and timed % LOG_EVERY == 0:
            self._cpu_ns.append(time.process_time_ns())
            self._wall_ns.append(time.perf_counter_ns())
        if timed == 0:
            self._at_first()
        self._calls += 1
        return default_collate(rows)

    def burst(self) -> Burst:
        """What was measured."""
        assert len(self._cpu_ns) == 1 + TIMED_STEPS // LOG_EVERY, f"{self._calls} batches only"
        cpu, wall = _us_per_step(self._cpu_ns), _us_per_step(self._wall_ns)
        # The median stretch: a neighbour that wakes up for a moment spoils one and not the burst.
        return Burst(statistics.median(cpu), min(cpu), statistics.median(wall))


def _us_per_step(times_ns: list[int]) -> list[float]:
    """Of each stretch of 50 steps; each holds one log line."""
    return [(after - before) / LOG_EVERY / 1000 for before, after in pairwise(times_ns)]


def run(train: Callable[[Task], Any], *, stopwatch: Stopwatch | None = None) -> Burst:
    """One short run of one contestant."""
    stopwatch = stopwatch or Stopwatch()
    gc.collect()  # everybody cleans up after themselves, not after whoever ran before
    with tempfile.TemporaryDirectory() as folder, silent():
        steps = WARM_UP_STEPS + TIMED_STEPS + 1
        train(Task(steps=steps, folder=Path(folder), collate=stopwatch))
    return stopwatch.burst()


def measure(
    contestants: Iterable[Contestant],
    *,
    rounds: int,
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, list[Burst]]:
    """All contestants once in each round, each round beginning with another. By name."""
    torch.set_num_threads(1)
    loaded = [(contestant.name, contestant.load()) for contestant in contestants]
    for _, train in loaded:
        run(train)  # imports, kernels, caches
    # The garbage collector is to look at what a loop makes, not at all that was ever imported.
    gc.collect()
    gc.freeze()
    bursts: dict[str, list[Burst]] = {name: [] for name, _ in loaded}
    for number in range(rounds):
        turn = number % len(loaded)
        for name, train in loaded[turn:] + loaded[:turn]:
            bursts[name].append(run(train))
        progress(number + 1)
    gc.unfreeze()
    return bursts


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What a loop prints goes nowhere, which is not a terminal."""
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
