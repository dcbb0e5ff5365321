"""The engine's steps beside hand-written ones, and whether all of them do the same work.

    pytest benchmarks/loop/bench_loop.py --benchmark-enable

`python -m benchmarks.loop` measures them side by side, the other trainers too.
"""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from . import report, timing
from .contestants import CONTESTANTS
from .tiny import Task

ROWS = [name for name in CONTESTANTS if name.startswith(("hand", "engine"))]
INSTALLED = [name for name, contestant in CONTESTANTS.items() if contestant.is_installed]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in ("hand", "hand-cse")])
def test_all_do_the_same_work(name, tmp_path):
    """From the same weights and the same rows in the same order, to the same weights."""

    def trained(who: str) -> torch.nn.Module:
        (tmp_path / who).mkdir()
        with timing.silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CONTESTANTS[who].load()(Task(steps=20, folder=tmp_path / who, shuffle=False))

    mine, theirs = trained(name).state_dict(), trained("hand-cse").state_dict()
    for key, weights in theirs.items():
        torch.testing.assert_close(mine[key], weights, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.benchmark(timer=time.process_time)
def test_a_run(benchmark, name):
    train = CONTESTANTS[name].load()
    timing.run(train, turns=1)
    benchmark.pedantic(lambda: timing.run(train, turns=8), rounds=9, iterations=1)


def test_steps_in_turn(benchmark):
    """The figures that count, in `extra_info`; a run above has a set-up and an end."""
    contestants = [CONTESTANTS[name] for name in ROWS]
    rounds = timing.ROUNDS_A_SITTING
    turns = benchmark.pedantic(timing.measure, (contestants,), {"rounds": rounds}, rounds=1)
    for row in report.summarise(turns):
        benchmark.extra_info[f"{row.contestant.name}_us_per_step"] = round(row.median, 1)
        if row.over is not None:
            benchmark.extra_info[f"{row.contestant.name}_over_hand_us"] = round(row.over.median, 1)
