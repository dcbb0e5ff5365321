"""A whole study of the recipe: 12 trials by two workers, one killed, then all stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugin_trainer.tuning.claims import WORKER, steps_saved
from plugin_trainer.tuning.studies import open_study
from tests import forkserver

TRIALS = 12
# Enough to be killed in the middle of, and no more.
SHORT = {
    "model_settings.hidden_size": "16",
    "model_settings.num_heads": "2",
    "data_settings.max_tokens": "16",
    "length": "12 steps",
    "evaluate": "3 steps",
    "save": "3 steps",
    "data_settings.examples": "640",
    "data_settings.validation_examples": "64",
}


def command() -> list[str]:
    settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    study = ["--study", "s", "--trials", str(TRIALS), "--workers", "2"]
    tune = ["tune", "--plugin", "dactbert", "--space", "loss", *study, *settings]
    return [sys.executable, "-m", "plugin_trainer", *tune]


def start() -> subprocess.Popen[str]:
    return forkserver.Popen(
        command(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def in_mid_trial(process: subprocess.Popen[str], *, at_least: int) -> tuple[int, int]:
    """A trial of at least this number that has a checkpoint, and the process that works on it."""
    while True:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
        if not Path("studies/s/study.toml").is_file():
            continue
        for stage in open_study("s").stages:
            trials = stage.optuna.get_trials() if stage.optuna is not None else []
            for trial in trials:
                worker = trial.system_attrs.get(WORKER)
                if trial.state.name == "RUNNING" and worker and trial.number >= at_least:
                    step = steps_saved(Path("studies/s/trials") / f"{trial.number:04}")
                    if 0 < step < 12:
                        return trial.number, worker["process"]


@pytest.mark.slow
def test_twelve_trials_come_to_an_end_whoever_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = start()
    killed, process = in_mid_trial(first, at_least=1)
    os.kill(process, signal.SIGKILL)
    in_mid_trial(first, at_least=killed + 1)
    first.send_signal(signal.SIGTERM)
    told, _ = first.communicate()
    assert first.returncode == 143, told
    second = start()
    later, _ = second.communicate()
    assert second.returncode == 0, later

    [stage] = open_study("s").stages
    assert [trial.number for trial in stage.trials] == list(range(TRIALS))
    assert {trial.state for trial in stage.trials} <= {"finished", "pruned"}, later
    assert sorted(path.name for path in Path("studies/s/trials").iterdir()) == [
        f"{number:04}" for number in range(TRIALS)
    ]
    # Whatever was begun twice went on from a checkpoint.
    again = re.findall(r"trial (\d+): goes on after step (\d+)", told + later)
    assert str(killed) in dict(again)
    assert all(int(step) > 0 for _, step in again)
    for number, _ in again:
        run = Path(f"studies/s/trials/{int(number):04}")
        about = json.loads((run / "run.json").read_text())
        assert about["resumed"] and min(about["resumed"]) > 0
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
        assert steps == sorted(set(steps))
    for trial in stage.trials:
        expected = 12 if trial.state == "finished" else 3 * len(trial.reports)
        assert trial.steps == expected
        assert [*trial.reports] == list(range(1, len(trial.reports) + 1))
        assert len(trial.reports) == trial.steps / 3
    best = [sys.executable, "-m", "plugin_trainer", "study", "best", "s"]
    done = forkserver.run(best, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--set optimizer.learning_rate=" in done.stdout
