"""A pytest plugin that records where the time of the suite goes: `make test DURATIONS=1`.

Counts what each test costs: the clock, and the processor time of its process and of all processes
that descend from it. A fixture counts for the first test that asks for it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SLOWEST = 40
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Seconds by the clock, and of processors."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: tuple[float, ...]) -> Cost:  # type: ignore[override]
        return Cost(self.wall_s + other[0], self.cpu_s + other[1])


def cpu_s() -> float:
    """Processor seconds of this process, of its descendants, and of those that have ended."""
    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    return ours + sum(_cpu_s_of(pid) for pid in _children(os.getpid()))


def _cpu_s_of(pid: int) -> float:
    with suppress(OSError):
        # The name, in parentheses, may hold spaces; fields 14 to 17 are the four times.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ours = sum(map(int, fields[11:15])) * _TICK_S
        return ours + sum(_cpu_s_of(child) for child in _children(pid))
    return 0.0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = os.times().elapsed, cpu_s()
    item.stash[_BEFORE] = before
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[Any]:
    report = yield
    if call.when == "teardown":
        wall, cpu = item.stash[_BEFORE]
        report.cost = (os.times().elapsed - wall, cpu_s() - cpu)
    return report


_BEFORE = pytest.StashKey[tuple[float, float]]()
_COSTS: dict[str, Cost] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if cost := getattr(report, "cost", None):
        _COSTS[report.nodeid] = Cost(*cost)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _COSTS:
        return
    text = tables(_COSTS)
    path = Path("build") / "durations.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    terminalreporter.write_line(f"\n{text}\nWritten to {path}.")


def tables(costs: dict[str, Cost]) -> str:
    """By folder and by file, most processor time first; then the slowest tests."""
    folders: dict[str, list[Cost]] = defaultdict(list)
    files: dict[str, list[Cost]] = defaultdict(list)
    for test, cost in costs.items():
        file = test.partition("::")[0]
        files[file].append(cost)
        folders["/".join(file.split("/")[:2])].append(cost)
    slowest = {
        f"`{test}`": [cost]
        for test, cost in sorted(costs.items(), key=lambda item: -item[1].wall_s)[:SLOWEST]
    }
    return "\n".join(
        [
            *_table("folder", _by_cpu(folders), total=True),
            "",
            *_table("file", _by_cpu(files)),
            "",
            *_table("slowest tests", slowest),
            "",
        ]
    )


def _by_cpu(groups: dict[str, list[Cost]]) -> dict[str, list[Cost]]:
    return dict(sorted(groups.items(), key=lambda item: -sum(c.cpu_s for c in item[1])))


def _table(title: str, groups: dict[str, list[Cost]], *, total: bool = False) -> Iterator[str]:
    rows = list(groups.items())
    if total:
        rows.append(("**all**", [cost for costs in groups.values() for cost in costs]))
    yield f"| {title} | tests | CPU s | wall s |"
    yield "|---|--:|--:|--:|"
    for name, costs in rows:
        wall, cpu = sum(costs, Cost())
        yield f"| {name} | {len(costs)} | {cpu:.1f} | {wall:.1f} |"
