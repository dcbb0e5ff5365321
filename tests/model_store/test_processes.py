"""Processes at one store at once, and processes killed at any moment: nothing is lost, nothing is
there twice, and no version is without its files.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest

import plugin_trainer
from plugin_trainer.model_store import Store, StoreError
from plugin_trainer.model_store.artifacts import Artifacts
from tests import forkserver

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parent / "scripted.py"
KILLED = -signal.SIGKILL


@pytest.fixture
def start(here, tmp_path):
    """Starts scripted.py in the current folder."""
    count = 0

    def run(action: str, *arguments: object, at: int = 0, do: str = "kill", **options):
        nonlocal count
        count += 1
        notes = tmp_path / f"notes-{count}"
        notes.mkdir()
        words = [str(argument) for argument in arguments]
        child = forkserver.Process(
            SCRIPT, notes, do, str(at), action, *words, output=tmp_path / f"{count}.txt",
            **{"cwd": here, **options},
        )  # fmt: skip
        child.notes = notes
        return child

    return run


def answer(child, what: str = "answer"):
    assert child.wait() == 0, child.text
    return json.loads(child.text)[what]


# ------------------------------------------------------------------------------- at the same time


def test_processes_that_register_at_once_get_a_number_each(store, start, assert_sound, assert_tidy):
    children = [start("register", "signs", 5) for _ in range(3)]
    numbers = [number for child in children for number in answer(child)]
    assert sorted(numbers) == list(range(1, 16))
    assert [version.number for version in store.versions("signs")] == list(range(1, 16))
    assert_sound(store)
    assert_tidy(store)


def test_a_checkpoint_that_several_register_once_is_one_version(store, start):
    children = [start("register", "signs", 3, "once") for _ in range(4)]
    assert {number for child in children for number in answer(child)} == {1}
    assert len(store.versions()) == 1


def test_removing_never_takes_the_files_of_who_is_registering(
    store, start, assert_sound, assert_tidy
):
    children = [start("register_and_remove", "gone", 6) for _ in range(2)]
    children += [start("register", "signs", 6) for _ in range(2)]
    for child in children:
        answer(child)
    assert len(store.versions("signs")) == 12
    assert_sound(store)
    store.register("first", name="last")
    assert_tidy(store)
    store.remove_all("signs")
    store.remove_all("last")
    assert list(store.folder.glob("artifacts/*")) == []


def test_removing_waits_for_who_has_found_its_files_but_not_written_its_version(
    store, start, assert_sound
):
    """The registrar pauses where it opens the registry, its files being the removed version's."""
    store.register("first", name="signs")
    registrar = start("register", "signs", 1, at=_opening_of_the_registry(start), do="pause")
    while not (registrar.notes / "reached").exists():
        assert registrar.poll() is None, registrar.text
        time.sleep(0.002)
    remover = start("remove", "signs:1")
    while any(version.number == 1 for version in store.versions()):
        assert remover.poll() is None or store.versions() == [], remover.text
        time.sleep(0.002)
    time.sleep(0.3)  # time enough to delete them, if nothing held it
    assert remover.poll() is None
    (registrar.notes / "go").touch()
    assert answer(registrar) == [2]
    assert remover.wait() == 0, remover.text
    assert_sound(store)


def _opening_of_the_registry(start) -> int:
    """The number of the operation with which a registration writes its version down, which is the
    last but those that put its staging folder away.
    """
    shutil.copytree("models", "before")
    total = answer(start("register", "signs", 1), "operations")
    shutil.rmtree("models")
    Path("before").rename("models")
    for at in range(total, 0, -1):
        shutil.copytree("models", "before")
        child = start("register", "signs", 1, at=at)
        child.wait()
        written = len(Store().versions())
        shutil.rmtree("models")
        Path("before").rename("models")
        if written == 1:
            return at
    raise AssertionError("nothing was written")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_a_user_who_may_only_read_a_store_reads_it(start, here):
    package = Path(plugin_trainer.__file__)
    if not all(folder.stat().st_mode & 0o001 for folder in package.parents):
        pytest.skip("the folder of the project is closed to other users")
    with tempfile.TemporaryDirectory() as folder:  # others may go into it, unlike pytest's
        shared = Path(folder) / "here"
        shutil.copytree(here, shared)
        Path(folder).chmod(0o755)
        run_toml = shared / "runs" / "first" / "run.toml"
        run_toml.write_text(run_toml.read_text().replace(str(here), str(shared)))
        store = Store(shared / "models")
        store.register(shared / "runs" / "first", name="signs")
        nobody = {"cwd": shared, "variables": {"STORE_USER": "65534"}}
        assert answer(start("read", "signs", **nobody)) == ["signs:1"]
        child = start("register", "signs", 1, **nobody)
        assert child.wait() == 1
        assert "the model store models cannot be written: Permission denied" in child.text
        assert len(store.versions()) == 1


# ----------------------------------------------------------------------------------------- killed


def killed_everywhere(start, action: str, *arguments: object):
    """Kill an action at each of its file operations in turn, from the same store; yields after
    each.
    """
    shutil.copytree("models", "before")
    at = 0
    while True:
        at += 1
        child = start(action, *arguments, at=at)
        code = child.wait()
        assert code in (0, KILLED), child.text
        yield at, code == 0
        shutil.rmtree("models")
        shutil.copytree("before", "models")
        if code == 0:
            return


def test_killed_at_any_operation_a_registration_is_there_whole_or_not_at_all(
    store, start, assert_sound, assert_tidy
):
    store.register("first", name="signs", checkpoint="step-3")
    seen = {1: 0, 2: 0}
    for _, whole in killed_everywhere(start, "register", "signs", 1):
        assert_sound(store)
        there = store.versions("signs")
        seen[len(there)] += 1
        assert len(there) == 2 or not whole
        assert there[1:] == [] or there[1].aliases == ("x",)
        # And so it is with whoever tries again: one version, the number that is next.
        again = store.register("first", name="signs", once=True)
        assert again.is_new == (len(there) == 1)
        assert [version.number for version in store.versions()] == [1, 2]
        assert_sound(store)
        assert_tidy(store)
    assert seen[1] > 20 and seen[2] > 1


def test_the_first_registration_of_a_store_may_be_killed_anywhere_too(
    store, start, assert_sound, assert_tidy
):
    store.folder.mkdir()
    for _ in killed_everywhere(start, "register", "signs", 1):
        assert_sound(store)
        store.register("first", name="signs", once=True)
        assert [str(version) for version in store.versions()] == ["signs:1"]
        assert_sound(store)
        assert_tidy(store)


def test_killed_at_any_operation_a_removal_takes_no_files_of_others(
    store, start, assert_sound, assert_tidy
):
    store.register("first", name="signs")
    store.register("first", name="other", checkpoint="step-3")
    seen = set()
    for _ in killed_everywhere(start, "remove", "signs:1"):
        assert_sound(store)
        seen.add(len(store.versions()))
        store.register("first", name="third", checkpoint="step-3")
        assert_sound(store)
        assert_tidy(store)
    assert seen == {1, 2}


def test_killed_at_any_operation_an_export_is_there_whole_or_not_at_all(store, start):
    store.register("first", name="signs")
    seen = set()
    for _ in killed_everywhere(start, "export", "signs", "out"):
        seen.add(Path("out").exists())
        if Path("out").exists():
            plugin_trainer.load_run("out")
            shutil.rmtree("out")
        for left in Path().glob(".out.tmp-*"):
            shutil.rmtree(left)
    assert seen == {False, True}


def test_killed_while_it_writes_the_registry_leaves_a_registry(store, start, assert_sound):
    """At random, so that some of the kills fall into SQLite's own operations."""
    for _ in range(2):
        store.register("first", name="signs")
    luck = random.Random(7)
    for _ in range(15):
        children = [start("move", "signs", "x") for _ in range(2)]
        time.sleep(luck.uniform(0.02, 0.12))
        for child in children:
            child.signal(signal.SIGKILL)
            assert child.wait() == KILLED, child.text
        holders = [version.number for version in store.versions() if "x" in version.aliases]
        assert len(holders) <= 1
        with sqlite3.connect(store.folder / "registry.sqlite") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    store.set_alias("signs:1", "x")
    assert_sound(store)


@pytest.mark.parametrize("largest_file", [300, 600, 3000])
def test_a_full_disk_registers_nothing_and_says_so(
    store, start, assert_sound, assert_tidy, largest_file
):
    """No file may grow beyond that: tensors do not fit, or run.json, or the registry."""
    store.register("first", name="signs", checkpoint="step-3")
    child = start("register", "signs", 1, largest_file=largest_file)
    assert child.wait() == 1
    assert "cannot be" in child.text and "Traceback" not in child.text, child.text
    assert len(store.versions()) == 1
    store.register("first", name="signs")
    assert_sound(store)
    assert_tidy(store)


def test_the_error_of_a_full_disk_is_the_stores(here):
    with pytest.raises(StoreError, match="cannot be written"):
        Store("/dev/null/models").register("first", name="signs")


def test_a_staging_folder_that_another_process_takes_away_meanwhile_is_no_leftover(
    tmp_path, monkeypatch
):
    artifacts = Artifacts(tmp_path / "artifacts")
    monkeypatch.setattr(Path, "is_dir", lambda self: True)  # it was there when it was looked for
    assert not artifacts.has_leftovers()
