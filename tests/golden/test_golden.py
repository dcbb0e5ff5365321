"""P07: commands, options and settings change on purpose only: compared with what is written down.

To renew what is written down: python tests/golden/make.py
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_spec = importlib.util.spec_from_file_location("ptrain_golden_make", HERE / "make.py")
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.mark.parametrize("file", make.FILES)
def test_P07_the_surface_is_as_it_is_written_down(file):
    before = json.loads((HERE / file).read_text(encoding="utf-8"))
    now = json.loads(make.written(make.FILES[file]()))
    lines = [
        f"{name}: {key}: {before.get(name, {}).get(key)} -> {now.get(name, {}).get(key)}"
        for name in {**before, **now}
        for key in {**before.get(name, {}), **now.get(name, {})}
        if before.get(name, {}).get(key) != now.get(name, {}).get(key)
    ]
    assert not lines and before == now, "\n".join(
        [*lines, "if that is on purpose: python tests/golden/make.py"]
    )


def test_P07_every_command_and_every_table_is_written_down():
    commands = json.loads((HERE / "cli.json").read_text(encoding="utf-8"))
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    assert {"ptrain", "ptrain run", "ptrain config explain", "ptrain plugins new"} <= set(commands)
    assert commands["ptrain run"]["--set"]["multiple"] is True
    assert settings["a run"]["accumulate"]["bounds"] == {"ge": 1}
    assert settings["callback early_stopping"]["patience"]["default"] == "3"
    assert "schedule cosine" in settings and "a run: optimizer" in settings


@pytest.mark.process
def test_writing_the_surface_down_needs_no_torch():
    script = (
        "import runpy, sys\n"
        f"found = runpy.run_path({str(HERE / 'make.py')!r})\n"
        "[make() for make in found['FILES'].values()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
