"""The README's run file trains, and its network fits pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_reinforcement import settings
from ptrain_reinforcement.networks import network_of_ones_own

from plugin_trainer.cli.main import main
from plugin_trainer.settings.describe import describe

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


def test_the_run_file_trains_and_is_scored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("run.toml").write_text(block("toml"), encoding="utf-8")
    short = ["--set", "length=20 steps", "--set", "evaluate=20 steps"]
    assert main(["run", "run.toml", "--out", "run", *short]) == 0
    assert "val/episode_reward" in capsys.readouterr().out


def test_the_network_takes_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path(tmp_path, "pixels.py").write_text(block("python"), encoding="utf-8")
    network = network_of_ones_own("pixels:Pixels", (3, 8, 8), 4)
    picture = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert network(picture).shape == (2, 4)


def test_every_setting_that_the_readme_names_is_one() -> None:
    known = {
        key.key
        for cls in (settings.QNetworkSettings, settings.EnvironmentSettings)
        for key in describe(cls)
    }
    named = set(re.findall(r"`((?:epsilon|target|first|acts|evaluation|test)_\w+)`", TEXT))
    assert len(named) >= 6
    assert named <= known


@pytest.fixture
def log(tmp_path: Path) -> dict[str, Any]:
    """Every name in the log of a short run."""
    Path("run.toml").write_text(block("toml"), encoding="utf-8")
    short = ["--set", "length=200 steps", "--set", "data_settings.test_episodes=1"]
    assert main(["run", "run.toml", "--out", "run", *short]) == 0
    lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def test_every_number_that_the_readme_names_is_in_the_log(log: dict[str, Any]) -> None:
    named = set(re.findall(r"`((?:train|val)/\w+)`", TEXT)) - {"val/loss"}
    assert len(named) >= 8
    assert named <= log.keys()
    assert "test/episode_reward" in log
    assert "val/loss" not in log
