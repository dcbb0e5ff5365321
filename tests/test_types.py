"""Every annotation is checked, by mypy as `make check` calls it; here beside the other tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/ptrain_*"))


@pytest.mark.slow
@pytest.mark.parametrize("what", [[], PLUGINS], ids=["core", "plugins"])
def test_mypy_finds_nothing(what):
    mypy = subprocess.run(
        [sys.executable, "-m", "mypy", *what], cwd=ROOT, capture_output=True, text=True
    )
    assert mypy.returncode == 0, mypy.stdout + mypy.stderr
