"""How far a run is, by what it writes while it trains: run.json says it only at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 18
"""So much of the end of a log is read: thousands of lines."""

_EVALUATED = ("val", "val_ema")
_BESTS = {"raw": "best", "ema": "best_ema"}


def state_of(folder: Path) -> dict[str, Any]:
    """What run.json says of a run, with the step, the last evaluation and the best so far of one
    that trains, was killed, or failed.
    """
    from plugin_trainer.files import read_object
    from plugin_trainer.run_folder import is_held

    about = read_object(folder / "run.json")
    if about.get("status") not in ("running", "failed"):
        return about
    if about["status"] == "running" and not is_held(folder):
        about["status"] = "killed"
    pointers = {name: _pointer(folder, name) for name in ("latest", *_BESTS.values())}
    lines = list(_last_lines(folder))
    told = [about] if about["status"] == "failed" else []  # else it is of an earlier end
    steps = [entry.get("step") for entry in (*told, *lines[:1], pointers["latest"])]
    known = [step for step in steps if isinstance(step, int)]
    if known:
        about["step"] = max(known)
    evaluated = next((found for line in lines if (found := _evaluation(line))), None)
    if evaluated:
        about["metrics"] = evaluated
    about["best"] = {
        weights: pointers[name]
        for weights, name in _BESTS.items()
        if isinstance(pointers[name].get("value"), (int, float))
    }
    return about


def _pointer(folder: Path, name: str) -> dict[str, Any]:
    from plugin_trainer.files import read_object

    return read_object(folder / "checkpoints" / f"{name}.json")


def _last_lines(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of metrics.jsonl, the newest first; not one that is being written."""
    from plugin_trainer.run_folder import METRICS

    path = folder / METRICS
    try:
        if not path.is_file():  # a FIFO would be waited for
            return
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL_BYTES, 0))
            tail = file.read()
    except OSError:
        return
    for text in reversed(tail.split(b"\n")):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    # What is not finite stands there as text.
    return {
        name: float(value)
        for name, value in line.items()
        if name.partition("/")[0] in _EVALUATED and isinstance(value, (int, float, str))
    }
