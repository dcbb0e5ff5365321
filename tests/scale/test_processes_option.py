"""`ptrain run --processes N`: torchrun behind it, and none of torchrun's own words."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.process]

PLUGIN = Path(__file__).with_name("plugin.py")


@pytest.fixture
def start(tmp_path) -> Callable[..., forkserver.Popen]:
    """Starts a run of the plugin beside this file in two processes."""

    def run(*settings: str, cold: bool = False) -> forkserver.Popen:
        return forkserver.Popen(
            [
                *(sys.executable, "-m", "plugin_trainer", "run", "--processes", "2"),
                *("--plugin", str(PLUGIN), "--out", str(tmp_path / "run")),
                *(f"--set={setting}" for setting in ("save=4 steps", *settings)),
            ],
            stdout=forkserver.PIPE,
            stderr=forkserver.PIPE,
            text=True,
            cold=cold,
        )

    return run


def test_a_mistake_is_told_once_and_nothing_is_started(start):
    launcher = start("lenght=3 epochs")
    output, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 2 and not output
    assert errors.count("did you mean 'length'?") == 1


def test_what_the_processes_find_out_is_told_once_with_their_exit_code(start):
    launcher = start("data_settings.batch=7")
    _, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 2
    assert errors.count("2 processes cannot share out such a batch evenly") == 1
    assert "Traceback" not in errors and "torch" not in errors, errors


def test_the_processes_save_and_end_when_their_launcher_is_killed(start, tmp_path):
    endless = ("length=100_000 steps", "log=1 step", "evaluate=never", "save=never")
    launcher = start(*endless, cold=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") > 3):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) >= 2
    launcher.kill()
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["status"], about["reason"]) == ("interrupted", "SIGTERM was received")
    assert (tmp_path / "run" / "checkpoints" / f"step-{about['step']:08d}").is_dir()


def is_alive(pid: str) -> bool:
    """Whether a process still runs; one that has ended may stay a zombie here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_signal_ends_it_as_it_ends_a_run_of_one_process(start, tmp_path):
    launcher = start("length=100_000 steps", "log=1 step", "evaluate=never")
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") > 3):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    output, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 128 + signal.SIGTERM
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / f"step-{about['step']:08d}").is_dir()
    assert f"ptrain run --resume {tmp_path / 'run'} --processes 2" in output
    assert "Traceback" not in errors, errors
