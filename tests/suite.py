"""A plugin of pytest for what holds for every test, of the plugins too: pyproject.toml names it."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest

from tests import forkserver

# What inductor caches and asks of the compiler takes longer than the graphs of these tests.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

MEMORY = Path("/dev/shm")
ENOUGH_BYTES = 4 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Put temporary folders into memory where there is room: the tests call fsync 50,000 times."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ENOUGH_BYTES:
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """One fork server for all workers. Where durations are taken each has one, as its child."""
    if not config.pluginmanager.has_plugin("tests.durations"):
        forkserver.start()


@pytest.fixture(autouse=True, scope="session")
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The key that signs run folders is kept where users keep theirs: not in their place."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("configuration"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: the file that is left at the end, with one worker
    at it and the others idle, is a short one.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and let what was imported alone: that alone takes 0.2 s each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="session")
def _inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
