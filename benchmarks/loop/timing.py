"""Times the steps of loops that take turns: 50 steps each, round after round.

Every loop runs in a process of its own, so that none pays for what another has imported, and only
the one whose turn it is runs. A loop is stopped and timed from inside its data, where its loader
makes a batch: between two such points lie whole steps and nothing else, whoever's loop it is.
Timing whole runs of two lengths would leave seconds between the loops that are compared, in which
a shared machine changes its speed by more than what is to be measured; a hook at the end of a step
is not there in every loop, and costs.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from .contestants import CONTESTANTS, Contestant
from .tiny import LOG_EVERY, Task

WARM_UP_STEPS = 100
# Then all processes are started anew: where a process lies in memory is worth some microseconds.
ROUNDS_A_SITTING = 40
PATIENCE_S = 300


@dataclass(frozen=True)
class Turn:
    """Microseconds per step over 50 steps, one log line among them.

    cpu   of the process, all its threads: what neighbours on the machine disturb least
    wall  by the clock
    """

    cpu: float
    wall: float


@dataclass
class Stopwatch:
    """A collate function that divides the steps of a loop into turns, once the loop is warm.

    between  called before the first turn and after each, with the turns so far
    """

    between: Callable[[Sequence[Turn]], Any] = lambda turns: None
    turns: list[Turn] = field(default_factory=list)
    _calls: int = 0
    _cpu_ns: int = 0
    _wall_ns: int = 0

    def __call__(self, rows: list[Any]) -> Any:
        """Make a batch."""
        if self._calls >= WARM_UP_STEPS and (self._calls - WARM_UP_STEPS) % LOG_EVERY == 0:
            self._change()
        self._calls += 1
        return default_collate(rows)

    def _change(self) -> None:
        cpu_ns, wall_ns = time.process_time_ns(), time.perf_counter_ns()
        if self._calls > WARM_UP_STEPS:
            per_step = LOG_EVERY * 1000
            self.turns.append(
                Turn((cpu_ns - self._cpu_ns) / per_step, (wall_ns - self._wall_ns) / per_step)
            )
        self.between(self.turns)
        # What its threads do while it waits is its own work, so the CPU clock goes on.
        self._cpu_ns, self._wall_ns = cpu_ns, time.perf_counter_ns()


def run(
    train: Callable[[Task], Any], *, turns: int, stopwatch: Stopwatch | None = None
) -> list[Turn]:
    """One run of one loop in this process."""
    stopwatch = stopwatch or Stopwatch()
    torch.set_num_threads(1)
    # The garbage collector is to look at what a loop makes, not at all that was ever imported.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder, silent():
        steps = WARM_UP_STEPS + turns * LOG_EVERY + 1
        train(Task(steps=steps, folder=Path(folder), collate=stopwatch))
    gc.unfreeze()
    assert len(stopwatch.turns) == turns, "the loop did not take all its steps"
    return stopwatch.turns


def measure(
    contestants: Iterable[Contestant],
    *,
    rounds: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, list[Turn]]:
    """Give each loop one turn in each round, each round beginning with another. By name."""
    names = [contestant.name for contestant in contestants]
    measured: dict[str, list[Turn]] = {name: [] for name in names}
    for done in range(0, rounds, ROUNDS_A_SITTING):
        count = min(ROUNDS_A_SITTING, rounds - done)
        for number, turns in enumerate(_sitting(names, rounds=count), start=1):
            for name, turn in turns.items():
                measured[name].append(turn)
            progress(done + number)
    return measured


def _sitting(names: Sequence[str], *, rounds: int) -> Iterator[dict[str, Turn]]:
    """Rounds between processes that are started for them."""
    spawn = multiprocessing.get_context("spawn")
    ours: dict[str, Connection] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            ours[name], theirs = spawn.Pipe()
            process = spawn.Process(target=_take_part, args=(name, rounds, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours[name].close)
        for name in names:
            _answer(name, ours[name])  # it is warm
        for number in range(rounds):
            first = number % len(names)
            turns = {}
            for name in [*names[first:], *names[:first]]:
                ours[name].send(None)
                turns[name] = _answer(name, ours[name])
            yield turns


def _take_part(name: str, turns: int, connection: Connection) -> None:
    """In a process of its own: run a loop, and wait after each turn to be called up again."""

    def between(done: Sequence[Turn]) -> None:
        connection.send(done[-1] if done else None)
        if len(done) < turns:
            connection.recv()

    run(CONTESTANTS[name].load(), turns=turns, stopwatch=Stopwatch(between))


def _answer(name: str, connection: Connection) -> Any:
    if not connection.poll(PATIENCE_S):
        raise TimeoutError(f"{name} has not answered for {PATIENCE_S} s")
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"{name} has failed; what it said stands above") from None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What a loop prints goes nowhere, which is not a terminal."""
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
