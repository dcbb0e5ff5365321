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
import torch

from plugin_trainer.training.checkpoints import CheckpointStore, read_model_state

HERE = Path(__file__).parent
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def together() -> Callable[..., Done]:
    """Run a script, or "-m" and a module, in so many processes, and wait for them."""

    def start(
        *command: str | Path, processes: int, options: Sequence[str] = (), cwd: Path | None = None
    ) -> Done:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return subprocess.run(
            [*launcher, f"--nproc-per-node={processes}", *options, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
