"""A package of somebody else's, made by `ptrain plugins new` and installed with pip, trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder outside the repository, with two plugins installed by pip: one good, one broken."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("spirals", "cracked"):
        ptrain(folder, "plugins", "new", name)
    hooks = folder / "ptrain-cracked" / "ptrain_cracked" / "hooks.py"
    hooks.write_text("import a_package_that_nobody_has\n" + hooks.read_text())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    sources = [str(folder / f"ptrain-{name}") for name in ("spirals", "cracked")]
    environment = {**os.environ, "PIP_CONSTRAINT": ""}
    subprocess.run([*pip, "--target", str(folder / "site"), *sources], check=True, env=environment)
    return folder


def ptrain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    environment.pop("PTRAIN_PLUGINS", None)
    return subprocess.run(
        [sys.executable, "-m", "plugin_trainer", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_its_model_data_callback_and_schedule_train_together(elsewhere):
    done = ptrain(elsewhere, "run", "--plugin", "spirals", "--out", "run")
    assert done.returncode == 0, done.stderr
    about = json.loads((elsewhere / "run" / "run.json").read_text())
    assert about["status"] == "finished"
    assert about["metrics"]["val/accuracy"] > 0.8
    plugin = next(plugin for plugin in about["plugins"] if plugin["name"] == "spirals")
    assert plugin["distribution"] == "ptrain-spirals"
    settings = (elsewhere / "run" / "run.toml").read_text()
    for part in ("spirals/mlp", "spirals/rings", "spirals/record", "spirals/half_cosine"):
        assert part in settings


def test_a_broken_neighbour_is_one_row_in_the_list(elsewhere):
    done = ptrain(elsewhere, "plugins")
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "broken" in rows["cracked"]
    assert " ok " in rows["spirals"]


def test_naming_the_broken_one_stops_with_a_message_and_no_traceback(elsewhere):
    done = ptrain(elsewhere, "run", "--plugin", "cracked")
    assert done.returncode == 2
    assert "plugin 'cracked' (ptrain-cracked 0.1.0) could not be imported" in done.stderr
    assert "No module named 'a_package_that_nobody_has'" in done.stderr
    assert "Traceback" not in done.stderr
