"""Time several ways to do the same in one process, in turns, and sum the times up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import torch

Work = Callable[[Any], object]
"""What is timed: it answers one batch, or whatever else the items are."""

UNMODIFIED = "unmodified"
"""What all others are compared with."""


def interleaved(
    work: Mapping[str, Work], batches: Sequence[Any], *, rounds: int, device: torch.device
) -> dict[str, list[list[float]]]:
    """Seconds by name, round and batch. Each batch is answered by all in turns, in random order, so
    that whatever else the machine does meets all of them alike.
    """
    order, names = random.Random(0), list(work)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for name in names:  # the first calls allocate
        for batch in (batches[0], batches[-1]):
            work[name](batch)
    for _ in range(rounds):
        for name in names:
            seconds[name].append([])
        for batch in batches:
            for name in order.sample(names, len(names)):
                _wait(device)
                start = time.perf_counter()
                work[name](batch)
                _wait(device)
                seconds[name][-1].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def summaries(
    seconds: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """By name: median and p95 of a batch in ms a row, and the total time as a share of the
    unmodified encoder's, with the least and the greatest share of a round.

    rows  of each batch
    """
    reference = [sum(batch_s) for batch_s in seconds[UNMODIFIED]]
    for name, by_round in seconds.items():
        ms = sorted(
            1000 * taken_s / count
            for batch_s in by_round
            for taken_s, count in zip(batch_s, rows, strict=True)
        )
        shares = [sum(batch_s) / whole for batch_s, whole in zip(by_round, reference, strict=True)]
        yield (
            name,
            {
                "median_ms": median(ms),
                "p95_ms": quantiles(ms, n=20, method="inclusive")[-1] if len(ms) > 1 else ms[0],
                "mean_ms": 1000 * sum(map(sum, by_round)) / (len(by_round) * sum(rows)),
                "ratio": median(shares),
                "ratio_min": min(shares),
                "ratio_max": max(shares),
            },
        )


@contextmanager
def so_many_threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
