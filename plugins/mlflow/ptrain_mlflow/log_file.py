"""Read a run's metrics.jsonl from where it was left: the one account of a run that is never lost.

Core writes each line whole, cuts the file back to a checkpoint when a run is resumed from it, and
never touches a line again otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "metrics.jsonl"
_POSITION = ("step", "epoch", "samples", "time")


@dataclass(frozen=True)
class Line:
    """One line: what was logged at an optimizer step.

    time_s   when, in seconds since 1970
    metrics  numbers by name, NaN and infinities among them
    end      where the next line begins, in bytes
    """

    step: int
    time_s: float
    metrics: Mapping[str, float]
    end: int


def size_of(folder: Path) -> int:
    """How long a run's log is, in bytes."""
    path = folder / FILE
    return path.stat().st_size if path.is_file() else 0


def read_lines(folder: Path, *, start: int = 0, until: int | None = None) -> Iterator[Line]:
    """The lines from one byte to another, but for one that is being written."""
    path = folder / FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for text in file:
            end += len(text)
            if not text.endswith(b"\n") or (until is not None and end > until):
                return
            values = json.loads(text)
            # The line of a step that failed has no time: it is the file's last.
            time_s = values.get("time", path.stat().st_mtime)
            # What is not finite stands there as text: "nan".
            metrics = {name: float(v) for name, v in values.items() if name not in _POSITION}
            yield Line(values["step"], time_s, metrics, end)
