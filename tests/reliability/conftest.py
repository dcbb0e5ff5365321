"""Comparing runs bit by bit, and starting the toy run in processes that can be killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

TOY = Path(__file__).with_name("toy.py")

# What depends on the clock.
_TIMED = ("time", "samples_per_second", "seconds/")


@pytest.fixture(scope="session")
def toy():
    """The toy run as a module."""
    spec = importlib.util.spec_from_file_location("toy", TOY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module  # so that its classes can be sent to workers
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy_process():
    """Runs the toy as a process of its own; gives its exit status, negative for a signal."""

    def run(out: Path, *options: str) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(TOY), str(out), *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    return run


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the last checkpoints and the metrics of two runs; bit by bit."""
    last = [run / "checkpoints" / _pointer(run)["checkpoint"] for run in (one, other)]
    found = []
    if last[0].name != last[1].name:
        return [f"{last[0].name} and {last[1].name}"]
    names = {path.name for folder in last for path in folder.iterdir()} - {"manifest.json"}
    for name in sorted(names):
        if name.endswith(".safetensors"):
            found += _tensor_differences(name, *(folder / name for folder in last))
    states = [json.loads((folder / "state.json").read_text())["state"] for folder in last]
    found += [f"state: {key}" for key in states[0] if states[0][key] != states[1][key]]
    if _metrics(one) != _metrics(other):
        found.append("metrics.jsonl")
    return found


def _tensor_differences(name: str, one: Path, other: Path) -> list[str]:
    left, right = safetensors.torch.load_file(one), safetensors.torch.load_file(other)
    if left.keys() != right.keys():
        return [f"{name}: other tensors"]
    return [f"{name}: {key}" for key in left if not torch.equal(left[key], right[key])]


def _pointer(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "latest.json").read_text())


def _metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(_TIMED)}
        for line in lines
    ]


@pytest.fixture(name="differences")
def differences_fixture():
    """See `differences`."""
    return differences
