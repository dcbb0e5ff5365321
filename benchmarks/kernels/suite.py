"""What the pytest-benchmark suites share: two threads, and no time without the right result.

`pytest benchmarks/kernels --benchmark-enable` times the variants one after another, with everything
that pytest-benchmark offers; the figures that count are of `python -m benchmarks.kernels`, where
they take turns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from plugin_trainer.ops.bench.interleaved import Variant

THREADS = min(2, os.cpu_count() or 1)


@contextmanager
def threads(count: int = THREADS) -> Iterator[None]:
    """So many threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_one(benchmark: Any, variants: Sequence[Variant], name: str) -> None:
    """Check the variant of this name, then time it."""
    variant = next(variant for variant in variants if variant.name == name)
    with threads():
        error = variant.error()
        assert error <= variant.tolerance, f"{name} is wrong: {error:.1e}"
        assert not math.isnan(error)
        benchmark.extra_info["error"] = error
        benchmark(variant.run)
