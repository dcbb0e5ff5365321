"""How long a new process waits for the kernels: built for the first time, and found again."""

from __future__ import annotations

import itertools

from .build import find


def test_cold_build(benchmark, tmp_path):
    caches = itertools.count()

    def build() -> None:
        assert find(tmp_path / str(next(caches))).origin == "built"

    benchmark.pedantic(build, rounds=3, iterations=1)


def test_cached_load(benchmark, tmp_path):
    find(tmp_path)
    find(tmp_path)  # the first to find it notes where it is
    found = []
    # The process is not what counts: what it measures of itself stands in `extra_info`.
    benchmark.pedantic(lambda: found.append(find(tmp_path)), rounds=9, iterations=1)
    assert {one.origin for one in found} == {"cached"}
    benchmark.extra_info["load_ms_median"] = 1e3 * sorted(one.wall_s for one in found)[4]
