"""The engine's steps beside hand-written ones, and whether all of them do the same work.

    pytest benchmarks/loop/bench_loop.py --benchmark-enable

`python -m benchmarks.loop` measures them side by side, the other trainers too.
"""

from __future__ import annotations

import statistics
import time
import warnings

import pytest
import torch

from . import timing
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


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", ROWS)
def test_steps(benchmark, name):
    train = CONTESTANTS[name].load()
    timing.run(train)
    bursts: list[timing.Burst] = []
    benchmark.pedantic(lambda: bursts.append(timing.run(train)), rounds=9, iterations=1)
    median = statistics.median(burst.cpu for burst in bursts)
    benchmark.extra_info["cpu_us_per_step"] = round(median, 1)
