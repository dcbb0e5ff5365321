"""What the kernels cost before they run: built for the first time, and found again."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .results import Section, Table, at_most

# The clock starts when torch is there, and stops when every op is registered.
FIND = """
import resource, time, torch
from plugin_trainer.ops import library
began = time.perf_counter()
found = library.find()
wall_s = time.perf_counter() - began
compilers = resource.getrusage(resource.RUSAGE_CHILDREN)
print(wall_s, compilers.ru_utime + compilers.ru_stime, found.origin)
"""
COLD_BUILDS, CACHED_LOADS = 3, 15


@dataclass(frozen=True)
class Found:
    """How a new process came by the kernels.

    wall_s         until they were there
    compilers_s    CPU time of the compilers, which a busy machine hardly changes
    origin         "built" or "cached"
    """

    wall_s: float
    compilers_s: float
    origin: str


def find(cache: Path) -> Found:
    """Look for the kernels in a new process with this cache."""
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        env={**os.environ, "PTRAIN_KERNELS_CACHE": str(cache), "PTRAIN_KERNELS": "require"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall_s, compilers_s, origin = done.stdout.split()
    return Found(float(wall_s), float(compilers_s), origin)


def section(*, rounds: int, device: str) -> Section:
    """Medians of new processes; each cold build has an empty cache."""
    del rounds
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder, str(number)) for number in range(COLD_BUILDS)]
        cold = [find(cache) for cache in caches]
        find(caches[0])  # the first to find it notes where it is
        cached = [find(caches[0]) for _ in range(CACHED_LOADS)]
    origins = [{one.origin for one in cold}, {one.origin for one in cached}]
    if origins != [{"built"}, {"cached"}]:
        raise RuntimeError(f"from an empty cache and a full one, libraries came as {origins}")
    cold_s = statistics.median(one.wall_s for one in cold)
    cached_ms = 1e3 * statistics.median(one.wall_s for one in cached)
    compilers_s = statistics.median(one.compilers_s for one in cold)
    fastest_s, fastest_ms = (min(one.wall_s for one in some) for some in (cold, cached))
    rows = [
        ["cold build", f"{cold_s:.2f} s", f"{fastest_s:.2f} s", f"{compilers_s:.2f} s"],
        ["cached load", f"{cached_ms:.2f} ms", f"{1e3 * fastest_ms:.2f} ms", ""],
    ]
    with_cuda = device != "cpu" or torch.version.cuda is not None
    heads = ("median", "fastest", "CPU time of the compilers")
    return Section(
        [Table("until the kernels are there, in a new process", heads, rows)],
        [
            at_most("cold build", cold_s, 10 if with_cuda else 3, unit=" s"),
            at_most("cached load", cached_ms, 1, unit=" ms"),
        ],
    )
