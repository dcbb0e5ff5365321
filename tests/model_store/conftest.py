"""A trained run of the command line's toy plugin, a store beside it, and processes to kill."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.files import write_json
from plugin_trainer.model_store import Store
from plugin_trainer.ownership import signature

TESTS = Path(__file__).parents[1]


def _module(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _trained(tmp_path_factory) -> Path:
    """A folder with ./toy.py and the finished run runs/first, every third step of it saved."""
    folder = tmp_path_factory.mktemp("trained") / "here"
    _module("ptrain_tests_cli", TESTS / "cli" / "conftest.py").write_toy(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PTRAIN_MODELS", raising=False)
        command = ["run", "--plugin", "./toy.py", "--out", "runs/first"]
        assert main([*command, "--set", "save=3 steps", "--set", "keep=all"]) == 0
    return folder


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is such a thing: a SIGKILL is as deadly there, and an fsync
    costs nothing.
    """
    inside = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=inside if os.access(inside, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def here(_trained, memory, monkeypatch) -> Iterator[Path]:
    """The test's own current folder with ./toy.py and runs/first, and no model store yet."""
    here = Path(tempfile.mkdtemp(dir=memory)) / "here"
    shutil.copytree(_trained, here)
    run_toml = here / "runs" / "first" / "run.toml"
    run_toml.write_text(run_toml.read_text().replace(str(_trained), str(here)))
    write_json(
        run_toml.with_name("run.json"),
        {
            **json.loads(run_toml.with_name("run.json").read_text()),
            "signature": signature(run_toml.read_text()),
        },
    )
    monkeypatch.chdir(here)
    monkeypatch.delenv("PTRAIN_MODELS", raising=False)
    yield here
    for name in [name for name in sys.modules if name.startswith("ptrain_local_toy")]:
        del sys.modules[name]


@pytest.fixture
def store(here) -> Store:
    """The store models/ in the current folder."""
    return Store()


def kept(store: Store) -> set[str]:
    """The hashes of the files that a store keeps."""
    return {path.name for path in (store.folder / "artifacts").glob("*/*")}


def wanted(store: Store) -> set[str]:
    """The hashes of the files that its versions have."""
    return {file.sha256 for version in store.versions() for file in version.files.values()}


@pytest.fixture
def assert_sound():
    """Every version has all its files, whole, and its numbers are each given once."""

    def check(store: Store) -> None:
        _, damages = store.verify()
        assert [str(damage) for damage in damages] == []
        names = [str(version) for version in store.versions()]
        assert len(names) == len(set(names))

    return check


@pytest.fixture
def assert_tidy():
    """Nothing is kept that no version has, and nothing half-written."""

    def check(store: Store) -> None:
        assert kept(store) == wanted(store)
        assert list((store.folder / ".staging").glob("*")) == []

    return check
