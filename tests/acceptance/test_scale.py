"""The DACT-BERT recipe in two processes, one killed and all started again: the losses of one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver

STEPS = 16
# The recipe in short: as it is, but for these.
SETTINGS = {
    "model_settings.hidden_size": "32",
    "model_settings.num_heads": "2",
    "length": f"{STEPS} steps",
    "evaluate": "8 steps",
    "save": "4 steps",
    "log": "2 steps",
    "data_settings.examples": "1000",
    "data_settings.validation_examples": "100",
}
KILLED_AFTER = 6


def command(out: Path, *more: str) -> list[str]:
    options = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    return ["run", "--plugin", "dactbert", "--out", str(out), *options, *more]


def log_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


# Each process of a run writes down its number.
NUMBERED = """
import os
from pathlib import Path
PTRAIN_API = 1
def ptrain_run_start(run):
    (Path(__file__).parent / f"process-{run.world.rank}").write_text(str(os.getpid()))
"""


def kill_one_of(launcher: forkserver.Popen, run: Path) -> None:
    """End one of the two processes by SIGKILL, once the run is in its middle."""
    deadline = time.monotonic() + 200
    while not any(line["step"] >= KILLED_AFTER for line in log_of(run)):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((run.parent / "process-1").read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    forkserver.run([sys.executable, "-m", "plugin_trainer", *command(out)], check=True)
    return out


@pytest.fixture
def bear(tmp_path) -> Callable[..., Path]:
    """The run in two processes, one of them killed in the middle."""

    def run(*more: str) -> Path:
        out, output = tmp_path / "run", (tmp_path / "output").open("w+")
        (tmp_path / "numbered.py").write_text(NUMBERED)
        launcher = forkserver.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node=2", "--max-restarts=1", "-m", "plugin_trainer"),
                *command(out, "--plugin", str(tmp_path / "numbered.py"), *more),
            ],
            stdout=output,
            stderr=forkserver.STDOUT,
        )
        try:
            kill_one_of(launcher, out)
            code = launcher.wait(timeout=200)
        finally:
            launcher.kill()
        output.seek(0)
        assert code == 0, output.read()[-3000:]
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_recipe_in_two_processes_killed_and_resumed_has_the_losses_of_one(
    strategy, alone, bear
):
    run = bear(f"--set=parallel.strategy={strategy}")
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "finished" and about["machine"]["strategy"] == strategy
    assert about["resumed"] and about["resumed"][0] >= KILLED_AFTER - 4
    ours, theirs = log_of(run), log_of(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, one in zip(ours, theirs, strict=True):
        for name in one:
            if name.startswith(("train/", "val")) and not name.endswith("f1"):
                assert line[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
