"""Comparing runs bit by bit, and starting the toy run in processes to which anything may happen."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests import forkserver

HERE = Path(__file__).parent
TOY = HERE / "toy.py"

# What depends on the clock.
_TIMED = ("time", "samples_per_second", "seconds/")


# The run of `start`, where a test says nothing else. A key with a dot is one of a table.
SETTINGS = {
    "length": "3 epochs",
    "evaluate": "3 steps",
    "save": "1 steps",
    "log": "2 steps",
    "keep": "all",
    "ema.decay": 0.9,
    "optimizer.learning_rate": 0.01,
    "optimizer.max_grad_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": "20 %",
    "callbacks": ["-progress_bar", "-tensorboard", "early_stopping", "faults"],
    "callback_settings.early_stopping.patience": 1000,
    "model": "toy/diary",
    "data": "toy/noisy",
    "data_settings.workers": 0,
}


def _module(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be sent to workers
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy():
    """The toy run as a module."""
    return _module("toy")


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is such a thing: a SIGKILL is as deadly there, and an fsync
    costs nothing.
    """
    inside = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=inside if os.access(inside, os.W_OK) else None)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(memory, request) -> Path:
    """A folder of the test's own."""
    return Path(tempfile.mkdtemp(dir=memory, prefix=f"{request.node.name[:40]}-"))


@pytest.fixture
def toy_process():
    """Runs the toy as a process of its own; gives its exit status, negative for a signal."""

    def run(out: Path, *options: str) -> int:
        output = out.with_suffix(".txt")
        code = forkserver.Process(TOY, out, *options, output=output).wait()
        assert code in (0, -9), output.read_text()
        return code

    return run


@pytest.fixture(scope="session")
def start():
    """Starts `ptrain run` on the toy, which goes on with what the folder holds.

    fault      what goes wrong and when: see faults.py
    options    of the process: see forkserver.Process
    settings   keys of a run file, with two underscores for a dot
    """

    def run(out: Path, *, fault: dict | None = None, options: dict | None = None, **settings):
        chosen = {**SETTINGS, **{key.replace("__", "."): v for key, v in settings.items()}}
        options = {"output": out.with_suffix(".txt"), **(options or {})}
        if fault is not None:
            fault = {"folder": str(out.parent), **fault}
            options["variables"] = {"PTRAIN_FAULT": json.dumps(fault)}
        return forkserver.Process(*run_command(out, chosen), **options)

    return run


def run_command(out: Path, settings: dict) -> list[str | Path]:
    """`ptrain run` of the toy with these settings, which goes on with what the folder holds."""
    command = ["-m", "plugin_trainer", "run", "--out", out, "--resume", "auto"]
    command += ["--plugin", TOY, "--plugin", HERE / "faults.py"]
    for key, value in settings.items():
        command += ["--set", f"{key}={_toml(value)}"]
    return command


def _toml(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="session")
def twin(start, memory):
    """The run with these settings that nothing ever happened to; each is made once."""
    made: dict[str, Path] = {}

    def whole(**settings) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            made[key] = memory / f"twin-{len(made)}" / "run"
            made[key].parent.mkdir()
            process = start(made[key], **settings)
            assert process.wait() == 0, process.text
        return made[key]

    return whole


@pytest.fixture
def reached(folder):
    """Waits until a run has reached the moment at which its fault lets it pause, and lets it go."""

    class Pause:
        def wait(self, process, notes: Path = folder, *, note: str = "reached") -> None:
            while not (notes / note).exists():
                assert process.poll() is None, process.text
                time.sleep(0.002)

        def over(self, notes: Path = folder) -> None:
            (notes / "go").touch()

    return Pause()


def leftovers(run: Path) -> list[str]:
    """What is in a run folder only while something is being written."""
    return [str(path.relative_to(run)) for path in run.rglob("*") if "tmp" in path.name]


@pytest.fixture(name="leftovers")
def leftovers_fixture():
    """See `leftovers`."""
    return leftovers


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the last checkpoints and the metrics of two runs; bit by bit."""
    last = [run / "checkpoints" / _pointer(run, "latest")["checkpoint"] for run in (one, other)]
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
    for name in ("best", "best_ema"):
        if _pointer(one, name) != _pointer(other, name):
            found.append(f"{name}.json")
    return found


def _tensor_differences(name: str, one: Path, other: Path) -> list[str]:
    left, right = safetensors.torch.load_file(one), safetensors.torch.load_file(other)
    if left.keys() != right.keys():
        return [f"{name}: other tensors"]
    return [f"{name}: {key}" for key in left if not torch.equal(left[key], right[key])]


def _pointer(run: Path, name: str) -> dict | None:
    path = run / "checkpoints" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


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
