"""A run that was killed goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plugin_trainer
from plugin_trainer.cli.main import main
from tests import forkserver

TIMED = ("time", "samples_per_second", "seconds/")

# Log lines, evaluations and checkpoints that do not fall together, episodes that last over several
# of each, and a buffer that goes round.
SETTINGS: Mapping[str, str] = {
    "data_settings.environment": "worlds:Corridor",
    "data_settings.max_episode_steps": "17",
    "data_settings.copies": "3",
    "data_settings.first_acts": "30",
    "data_settings.replay_capacity": "100",
    "data_settings.batch_size": "16",
    "data_settings.batches_per_epoch": "25",
    "data_settings.epsilon_steps": "70",
    "data_settings.evaluation_episodes": "3",
    "data_settings.test_episodes": "2",
    "model_settings.hidden_sizes": "[16]",
    "model_settings.target_every_steps": "4",
    "model_settings.target_rate": "0.5",
    "length": "90 steps",
    "evaluate": "35 steps",
    "save": "20 steps",
    "log": "7 steps",
    "keep": "all",
    "ema.decay": "0.9",
    "callbacks": '["-progress_bar", "-tensorboard", "worlds:KillAt"]',
}


def command(out: str, changes: Mapping[str, str]) -> list[str]:
    arguments = ["run", "--plugin", "reinforcement", "--out", out, "--resume", "auto"]
    for key, value in {**SETTINGS, **changes}.items():
        arguments += ["--set", f"{key}={value}"]
    return arguments


def killed(out: str, *, step: int, **changes: str) -> None:
    """A run in a process of its own, dead after a step."""
    repository = Path(plugin_trainer.__file__).parents[1]
    variables = {
        "OMP_NUM_THREADS": "1",
        "KILL_AT": str(step),
        "PYTHONPATH": os.pathsep.join((str(Path.cwd()), str(repository))),
    }
    done = forkserver.run(
        [sys.executable, "-m", "plugin_trainer", *command(out, changes)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == -9, done.stderr


def cut_back(run: str, to: str, *, step: int) -> None:
    """A copy of a run as it was on disk when its process died right after saving a step."""
    shutil.copytree(run, to)
    for checkpoint in Path(to, "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    about = Path(to, "run.json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "status": "running"}))


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the last checkpoints and the metrics of two runs, bit by bit."""
    found = []
    last = [sorted((run / "checkpoints").glob("step-*"))[-1] for run in (one, other)]
    names = {path.name for folder in last for path in folder.iterdir()} - {"manifest.json"}
    for name in sorted(names):
        if not same(last[0] / name, last[1] / name):
            found.append(name)
    lines = [untimed(run) for run in (one, other)]
    found += [f"metrics: {a} and {b}" for a, b in zip(*lines, strict=False) if a != b]
    if len(lines[0]) != len(lines[1]):
        found.append(f"{len(lines[0])} and {len(lines[1])} lines of metrics")
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two files say the same; the headers of the tensors' are in no order."""
    if one.suffix != ".safetensors":
        return one.read_bytes() == other.read_bytes()
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def untimed(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(TIMED)}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


CARTPOLE = {
    "data_settings.environment": "CartPole-v1",
    "data_settings.max_episode_steps": "0",
    "length": "60 steps",
}


@pytest.mark.process
def test_a_run_that_was_killed_equals_one_that_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("whole", CARTPOLE)) == 0
    killed("killed", step=47, **CARTPOLE)
    assert main(command("killed", CARTPOLE)) == 0
    assert differences(Path("whole"), Path("killed")) == []
    about = json.loads(Path("killed/run.json").read_text())
    assert about["resumed"] == [40]
    assert about["inexact_because"] == ""
    assert "not be exact" not in capsys.readouterr().err


@pytest.mark.parametrize("step", [20, 40, 80])
@pytest.mark.parametrize("environment", ["worlds:Corridor", "worlds:Saves"])
def test_a_run_goes_on_exactly_from_each_of_its_checkpoints(environment: str, step: int) -> None:
    changes = {"data_settings.environment": environment}
    assert main(command("whole", changes)) == 0
    cut_back("whole", "cut", step=step)
    assert main(command("cut", changes)) == 0
    assert json.loads(Path("cut/run.json").read_text())["resumed"] == [step]
    assert differences(Path("whole"), Path("cut")) == []


def test_one_that_cannot_be_restored_says_so_at_start_and_begins_new_episodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    opaque = {"data_settings.environment": "worlds:Opaque"}
    assert main(command("whole", opaque)) == 0
    because = "worlds:Opaque cannot be restored (Opaque.winds is a cycle), so a resumed run begins"
    assert because in " ".join(capsys.readouterr().err.split())
    about = json.loads(Path("whole/run.json").read_text())
    assert about["inexact_because"].startswith(because)

    cut_back("whole", "cut", step=40)
    state = json.loads(Path("cut/checkpoints/step-00000040/state.json").read_text())["state"]
    kept = state["callbacks"]["reinforcement"]
    capsys.readouterr()
    assert main(command("cut", opaque)) == 0
    assert because in " ".join(capsys.readouterr().err.split())
    lines = {line["step"]: line for line in untimed(Path("cut")) if "train/loss" in line}
    # Nothing of what was lived through is lost but the episodes at hand.
    assert lines[42]["train/environment_steps"] == kept["acts"] + 2 * 3
    assert lines[90]["train/environment_steps"] == 30 + 90 * 3
    assert lines[90]["train/episodes"] > kept["episodes"]
    before = [line for line in untimed(Path("whole")) if line["step"] <= 35]
    assert untimed(Path("cut"))[: len(before)] == before


def test_everything_is_in_the_checkpoint_and_nothing_is_pickled() -> None:
    assert main(command("run", {"length": "40 steps"})) == 0
    checkpoint = Path("run/checkpoints/step-00000040")
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".json"}
    tensors = load_file(checkpoint / "extra.safetensors")
    replay = {name.rpartition("/")[2]: value for name, value in tensors.items() if "replay" in name}
    assert replay["observation"].shape == (100, 5)
    assert replay["terminated"].dtype == torch.bool
    state = json.loads((checkpoint / "state.json").read_text())["state"]
    kept = state["callbacks"]["reinforcement"]
    assert kept["acts"] == 30 + 40 * 3
    assert len(kept["actors"]) == 3
    assert {"episode", "environment", "observation", "reward", "length"} == set(kept["actors"][0])
    assert kept["random"]["bit_generator"] == "PCG64"
    weights = load_file(checkpoint / "model.safetensors")
    assert any(name.startswith("target.") for name in weights)


def test_a_resumed_run_may_remember_more_and_act_in_more_copies() -> None:
    assert main(command("run", {"length": "20 steps"})) == 0
    changes = {
        "length": "40 steps",
        "data_settings.copies": "4",
        "data_settings.replay_capacity": "150",
    }
    refused = main(command("run", changes))
    assert refused == 2
    allowed = [part for key in ("length", "data_settings") for part in ("--allow", key)]
    assert main([*command("run", changes), *allowed]) == 0
    assert untimed(Path("run"))[-2]["train/environment_steps"] == 30 + 20 * 3 + 20 * 4


def test_another_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("run", {"length": "20 steps"})) == 0
    other = {"length": "40 steps", "data_settings.options": "{places = 7}"}
    allowed = [part for key in ("length", "data_settings") for part in ("--allow", key)]
    capsys.readouterr()
    assert main([*command("run", other), *allowed]) == 2
    assert "do not fit" in capsys.readouterr().err
