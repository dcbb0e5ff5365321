"""What the kernels cost before they run: built for the first time, and found again."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .results import Section, Table, at_most

# The clock starts when torch is there, and stops when every op is registered.
FIND = """
import time, torch
from plugin_trainer.ops import library
began = time.perf_counter()
found = library.find()
print(time.perf_counter() - began, found.origin)
"""
COLD_BUILDS, CACHED_LOADS = 3, 15


def find_s(cache: Path) -> tuple[float, str]:
    """Seconds until a new process has the kernels, and where it had them from."""
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        env={**os.environ, "PTRAIN_KERNELS_CACHE": str(cache), "PTRAIN_KERNELS": "require"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, origin = done.stdout.split()
    return float(seconds), origin


def section(*, rounds: int, device: str) -> Section:
    """Medians of new processes; each cold build has an empty cache."""
    del rounds
    cold, cached = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(COLD_BUILDS):
            cache = Path(folder, str(number))
            took_s, origin = find_s(cache)
            if origin != "built":
                raise RuntimeError(f"an empty cache gave a library that was {origin}")
            cold.append(took_s)
        find_s(cache)  # the first to find it notes where it is
        for _ in range(CACHED_LOADS):
            took_s, origin = find_s(cache)
            if origin != "cached":
                raise RuntimeError(f"a full cache gave a library that was {origin}")
            cached.append(took_s)
    rows = [
        ["cold build", f"{statistics.median(cold):.2f} s", f"{min(cold):.2f} s"],
        [
            "cached load",
            f"{1e3 * statistics.median(cached):.2f} ms",
            f"{1e3 * min(cached):.2f} ms",
        ],
    ]
    with_cuda = device != "cpu" or torch.version.cuda is not None
    return Section(
        [Table("until the kernels are there, in a new process", ("median", "fastest"), rows)],
        [
            at_most("cold build", statistics.median(cold), 10 if with_cuda else 3, unit=" s"),
            at_most("cached load", 1e3 * statistics.median(cached), 1, unit=" ms"),
        ],
    )
