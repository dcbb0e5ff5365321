"""Every annotation is checked, by mypy as `make check` calls it; here beside the other tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PACKAGES = ["plugin_trainer", *ROOT.glob("plugins/*/ptrain_*")]


@pytest.mark.slow
def test_mypy_finds_nothing():
    command = [sys.executable, "-m", "mypy", *PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
