"""Start real processes together, as torchrun does, and read what they left."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state
from tests import forkserver

HERE = Path(__file__).parent
SETTINGS = {
    "length": "3 epochs",
    "evaluate": "4 steps",
    "save": "4 steps",
    "log": "2 steps",
    "ema.decay": 0.9,
    "optimizer.max_grad_norm": 1.0,
    "callbacks": ["-tensorboard", "-progress_bar", "fault"],
}
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def together() -> Callable[..., Done]:
    """Run a script, or "-m" and a module, in so many processes, and wait for them."""

    def start(
        *command: str | Path,
        processes: int,
        options: Sequence[str] = (),
        cwd: Path | None = None,
        cold: bool = False,
    ) -> Done:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return forkserver.run(
            [*launcher, f"--nproc-per-node={processes}", *options, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cold=cold,
        )

    return start


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The script of small runs."""
    spec = importlib.util.spec_from_file_location("small_runs", HERE / "runs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a run's log."""
    return lambda run: [json.loads(text) for text in (run / "metrics.jsonl").open()]


@pytest.fixture(scope="session")
def weights_of() -> Callable[..., dict[str, torch.Tensor]]:
    """The weights of a run's last checkpoint, whole."""
    return lambda run, weights="raw": read_model_state(
        CheckpointStore(run).find("last").path, weights=weights
    )


@pytest.fixture(scope="session")
def train(together) -> Callable[..., Done]:
    """`ptrain run` of the plugin beside this file, in so many processes.

    fault    which process meets what: see plugin.py
    settings  keys of a run file, with two underscores for a dot
    """

    def run(
        out: Path,
        *options: str,
        processes: int = 2,
        restarts: int = 0,
        fault: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Done:
        chosen = {**SETTINGS, **{key.replace("__", "."): v for key, v in settings.items()}}
        command: list[str | Path] = ["-m", "plugin_trainer", "run", "--out", out, *options]
        command += ["--plugin", str(HERE / "plugin.py")]
        for key, value in chosen.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += ["--set", f"{key}={text}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PTRAIN_FAULT", json.dumps(fault or {}))
            return together(*command, processes=processes, options=[f"--max-restarts={restarts}"])

    return run


@pytest.fixture(scope="session")
def bits_of() -> Callable[[Path], dict[str, Any]]:
    """All that the last checkpoint of a run holds, to the bit, and its log but for the clock."""

    def read(run: Path) -> dict[str, Any]:
        checkpoint = CheckpointStore(run).find("last").path
        held: dict[str, Any] = {"state": (checkpoint / "state.json").read_text()}
        for file in sorted(checkpoint.rglob("*.safetensors")):
            for name, tensor in safetensors.torch.load_file(file).items():
                data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                held[f"{file.relative_to(checkpoint)}: {name}"] = tensor.shape, data
        lines = [json.loads(text) for text in (run / "metrics.jsonl").open()]
        timed = ("time", "seconds/")
        held["log"] = [
            {k: v for k, v in line.items() if not k.startswith(timed) and "per_second" not in k}
            for line in lines
        ]
        return held

    return read
