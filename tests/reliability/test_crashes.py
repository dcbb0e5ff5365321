"""Crashes, full disks, damage and rivals: C01 to C09 of the reliability bar.

Whatever happens to a process, its run goes on with `--resume auto` and ends as a run to which
nothing happened, bit by bit.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import plugin_trainer
from plugin_trainer.errors import CheckpointError
from plugin_trainer.training.checkpointing.store import CheckpointStore, verify
from tests import forkserver

pytestmark = pytest.mark.process

KILLED = -signal.SIGKILL
# Beside the settings of `start`: few steps, of which the fourth is the last.
SHORT = {"length": "4 steps", "log": "1 steps"}
# The evaluation of step 3 is the best; one more follows after the last checkpoint was written, but
# the loss falls.
ONE_KEPT = {**SHORT, "keep": 1, "best.mode": "max"}


def done(process, code: int = 0):
    assert process.wait() == code, process.text
    return process


def newest(run: Path) -> int:
    found, _ = CheckpointStore(run).newest_sound()
    return found.step if found is not None else 0


def logged(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


# --------------------------------------------------------------------------- C01, C02: SIGKILL


def test_C01_killed_at_random_while_saving_a_run_loses_at_most_one_interval(
    start, twin, differences, leftovers, folder
):
    # The state is 20 MB and written at every step, so that most kills hit while it is written.
    settings = {
        "length": "8 steps",
        "evaluate": "4 steps",
        "log": "1 steps",
        "model_settings__ballast_mb": 10,
        "keep": 2,
    }
    luck = random.Random(20)
    run = folder / "run"
    for _ in range(6):
        before = newest(run)
        process = start(run, **settings)
        wait_for_news(run / "checkpoints", process)
        time.sleep(luck.uniform(0, 0.08))
        process.signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        after = newest(run)
        assert after >= before
        # A step's line is written before its checkpoint: of what was logged, one step may be lost.
        assert after >= max((line["step"] for line in logged(run)), default=0) - 1
    done(start(run, **settings))
    assert differences(twin(**settings), run) == []
    assert leftovers(run) == []


def wait_for_news(checkpoints: Path, process) -> None:
    """Until something new is being written among the checkpoints, or the process has ended."""

    def names():
        return {path.name for path in checkpoints.iterdir()} if checkpoints.is_dir() else set()

    before = names()
    while names() <= before and process.poll() is None:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def saved_before(start, memory):
    """A run that was killed right after its second step was saved."""
    run = memory / "saved-before" / "run"
    run.parent.mkdir()
    done(start(run, fault={"at": "committed:2", "do": "kill"}, **ONE_KEPT), KILLED)
    return run


@pytest.mark.parametrize(
    ("save", "settings"),
    [
        # A new best, and the checkpoint of step 2 is deleted.
        pytest.param("3", ONE_KEPT, id="a-best"),
        # The last, with the evaluation that ends the run, of which there is no other.
        pytest.param("4", {**SHORT, "keep": 1, "evaluate": "never"}, id="the-last"),
    ],
)
def test_C02_killed_before_any_of_the_file_operations_of_a_save_nothing_is_lost(
    start, twin, differences, leftovers, folder, save, settings
):
    fault = {"at": f"file:{save}", "do": "photograph"}
    done(start(folder / "run", fault=fault, **settings))
    photos = {int(path.name.removeprefix("photo-")): path for path in folder.glob("photo-*")}
    states = {number: state_of(photos[number] / "run") for number in photos}
    # A photograph of what is on disk at a moment is what a SIGKILL at that moment leaves.
    for number in random.Random(1).sample(sorted(photos), 3):
        run = folder / f"killed-{number}"
        done(start(run, fault={"at": f"file:{save}:{number}", "do": "kill"}, **settings), KILLED)
        assert state_of(run) == states[number]
    lost = {}
    distinct = {state: number for number, state in states.items()}
    for number in distinct.values():
        run = photos[number] / "run"
        if newest(run) < int(save[0]) - 1:
            lost[number] = f"only step {newest(run)} is left"
            continue
        done(start(run, **settings))
        lost[number] = differences(twin(**settings), run) + leftovers(run)
    assert {number: what for number, what in lost.items() if what} == {}
    assert len(distinct) > 8


def state_of(run: Path) -> frozenset:
    """What a run folder holds of checkpoints, as far as a resume could tell."""
    numbers_of_processes = re.compile(r"(?<=\.tmp-)(\w+-)?\d+")
    return frozenset(
        (numbers_of_processes.sub(r"\1", str(path.relative_to(run))), content(path))
        for path in (run / "checkpoints").rglob("*")
    )


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


# ------------------------------------------------------------------------- C03, C04: the disk


class Disk:
    """A disk of its own, in memory, which can be made larger."""

    def __init__(self, path: Path, *, kilobytes: int) -> None:
        self.path = path
        mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path))

    def fill(self) -> None:
        """Leave not a byte free."""
        with (self.path / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def resize(self, *, kilobytes: int) -> None:
        (self.path / "filler").unlink(missing_ok=True)
        mount("-o", f"remount,size={kilobytes}k", str(self.path))

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def mount(*options: str) -> None:
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk of its own needs the right to mount one")


@pytest.fixture
def disk(folder) -> Iterator[Disk]:
    """A disk of 2 MB."""
    made = Disk(folder, kilobytes=2000)
    yield made
    made.remove()


BIG = {**SHORT, "length": "6 steps", "model_settings__ballast_mb": 0.2}


def test_C03_a_disk_that_is_full_stops_the_run_in_words_and_it_goes_on_once_there_is_room(
    start, twin, disk, differences, leftovers
):
    run = disk.path / "run"
    process = done(start(run, **BIG), 1)
    assert "No space left on device" in process.text
    assert "make room, then go on with --resume auto" in process.text
    assert "Traceback" not in process.text and "internal error" not in process.text
    step = newest(run)
    assert f"error: the checkpoint of step {step + 1} could not be written" in process.text
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert names == [f"step-{number:08d}" for number in range(1, step + 1)]
    for path in (run / "checkpoints").glob("step-*"):
        CheckpointStore(run).find(path.name)  # raises for one that is not whole
    assert [line["step"] for line in logged(run)] == [*range(1, step + 2)]
    assert leftovers(run) == []
    disk.resize(kilobytes=20_000)
    done(start(run, **BIG))
    assert differences(twin(**BIG), run) == []


@pytest.mark.parametrize(
    ("moment", "broken"),
    [
        pytest.param("step_end:2", "metrics.jsonl", id="metrics"),
        pytest.param("run_end:4", "run.json", id="run.json"),
        pytest.param("committed:2", "checkpoint", id="checkpoint"),
    ],
)
def test_C03_a_disk_that_is_full_at_any_file_stops_the_run_and_it_goes_on_once_there_is_room(
    start, twin, disk, differences, leftovers, moment, broken
):
    # Lines of numbers as long as a block: each needs another.
    settings = {**SHORT, "log": "3 steps" if broken == "metrics.jsonl" else "1 steps"}
    if broken == "metrics.jsonl":
        settings["save"] = "never"
    run = disk.path / "run"
    process = done(start(run, fault={"at": moment, "do": "fill"}, **settings), 1)
    assert "No space left on device" in process.text
    assert "Traceback" not in process.text and "internal error" not in process.text
    disk.resize(kilobytes=20_000)
    process = done(start(run, **settings))
    assert differences(twin(**settings), run) == []
    assert leftovers(run) == []


def test_C03_a_disk_that_is_full_from_the_start_is_told_in_words(
    start, twin, disk, differences, memory
):
    run = disk.path / "run"
    disk.fill()
    output = Path(tempfile.mkdtemp(dir=memory)) / "output"  # not on that disk
    process = start(run, options={"output": output}, **SHORT)
    code = process.wait()
    disk.resize(kilobytes=20_000)
    done(start(run, **SHORT))
    assert differences(twin(**SHORT), run) == []
    assert "No space left on device" in process.text
    assert code in (1, 2)
    assert "Traceback" not in process.text and "internal error" not in process.text


def test_C03_a_disk_that_is_full_for_tensorboard_stops_no_checkpoint(
    start, twin, disk, differences
):
    settings = {**SHORT, "callbacks": ["-progress_bar", "early_stopping", "faults"]}
    run = disk.path / "run"
    process = start(run, fault={"at": "committed:2", "do": "fill"}, **settings)
    done(process, 1)
    assert "Traceback" not in process.text and "internal error" not in process.text
    assert newest(run) == 2
    disk.resize(kilobytes=20_000)
    done(start(run, **settings))
    assert differences(twin(**settings), run) == []


def test_C03_a_file_that_may_not_grow_stops_the_run_in_words_and_it_goes_on_without_the_limit(
    start, twin, differences, leftovers, folder
):
    # The weights fit, the optimizer's state and the rest do not from the first step on.
    run = folder / "run"
    process = done(start(run, options={"largest_file": 20_000}, **BIG), 1)
    assert "error: the checkpoint of step 1 could not be written: File too large" in process.text
    assert "Traceback" not in process.text and "internal error" not in process.text
    assert leftovers(run) == []
    done(start(run, **BIG))
    assert differences(twin(**BIG), run) == []


def test_C04_a_folder_that_may_not_be_written_is_refused(start, folder):
    # Root may write anywhere, so the process is someone else's.
    user = 65534 if os.getuid() == 0 else None
    package = Path(plugin_trainer.__file__)
    if user is not None and not all(p.stat().st_mode & 0o001 for p in package.parents):
        pytest.skip("the folder of the project is closed to other users, and root may write all")
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        outer.chmod(0o755)
        closed = outer / "closed"
        closed.mkdir(mode=0o555)
        for run in (closed, closed / "run"):
            options = {"user": user, "cwd": outer, "output": folder / "output"}
            process = done(start(run, options=options, **SHORT), 2)
            assert (
                f"error: the run folder {run} cannot be written: Permission denied" in process.text
            )
            assert "choose another with --out" in process.text
        assert list(closed.iterdir()) == []


@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_C04_a_disk_that_becomes_read_only_stops_the_run_and_it_goes_on_once_it_is_not(
    start, twin, differences, leftovers, folder, memory, reached, what
):
    run, notes = folder / "run", Path(tempfile.mkdtemp(dir=memory))
    fault = {"at": "committed:2", "do": "pause", "folder": str(notes)}
    process = start(run, fault=fault, **SHORT)
    reached.wait(process, notes)
    with read_only(run / what):
        reached.over(notes)
        done(process, 1)
        assert "error: the checkpoint of step 3 could not be written: Read-only" in process.text
        assert "Traceback" not in process.text and "internal error" not in process.text
    done(start(run, **SHORT))
    assert differences(twin(**SHORT), run) == []
    assert leftovers(run) == []


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Nobody can create, change or delete what is in the folder, root neither."""
    mount("--bind", str(path), str(path))
    try:
        mount("-o", "remount,ro,bind", str(path))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# --------------------------------------------------------------------------- C05: damage


@pytest.fixture(scope="module")
def three_saved(start, memory):
    """A run that was killed right after its third step was saved, with all its checkpoints."""
    run = memory / "three-saved" / "run"
    run.parent.mkdir()
    done(start(run, fault={"at": "committed:3", "do": "kill"}, **SHORT), KILLED)
    return run


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def deleted(file: Path) -> None:
    file.unlink()


def overwritten(file: Path) -> None:
    file.write_text("no JSON at all")


DAMAGES = [
    *[
        (file, damage)
        for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
        for damage in (truncated, flipped)
    ],
    *[("manifest.json", damage) for damage in (truncated, emptied, deleted, overwritten)],
]


@pytest.mark.parametrize(
    ("file", "damage"), [pytest.param(*d, id=f"{d[0]}-{d[1].__name__}") for d in DAMAGES]
)
def test_C05_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    start, twin, three_saved, differences, folder, file, damage
):
    run = copied(three_saved, folder / "run")
    damage(run / "checkpoints" / "step-00000003" / file)
    process = done(start(run, **SHORT))
    reason = "(has no|is not sound: its) manifest"
    if file != "manifest.json":
        reason = f"is not sound: .*{file}"
    named = rf"passed over.*checkpoints/step-00000003 {reason}"
    assert re.search(named, process.text), process.text
    assert re.search(r"going on from .*checkpoints/step-00000002, step 2", process.text)
    assert differences(twin(**SHORT), run) == []


def test_C05_a_manifest_with_any_bit_flipped_is_refused_or_still_true(three_saved, folder):
    run = copied(three_saved, folder / "run")
    checkpoint = run / "checkpoints" / "step-00000003"
    manifest = checkpoint / "manifest.json"
    whole, about = manifest.read_bytes(), json.loads(manifest.read_text())
    accepted = 0
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        manifest.write_bytes(content)
        try:
            verify(checkpoint)
        except CheckpointError as error:
            assert str(checkpoint) in str(error)
            continue
        accepted += 1
        assert json.loads(content)["files"] == about["files"]
    assert accepted < len(whole) / 5  # of the version of torch, say, and of blanks


def test_C05_a_run_all_of_whose_checkpoints_are_damaged_is_refused_with_every_reason(
    start, three_saved, folder
):
    run = copied(three_saved, folder / "run")
    for step in (1, 2, 3):
        flipped(run / "checkpoints" / f"step-{step:08d}" / "state.json")
    process = done(start(run, **SHORT), 2)
    assert f"error: no checkpoint of {run} is sound" in process.text
    for step in (1, 2, 3):
        assert re.search(f"step-{step:08d} is not sound: the hash of state.json", process.text)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*"))[0].endswith("1")


def test_C05_a_finished_run_whose_last_checkpoint_is_damaged_makes_its_last_steps_again(
    start, twin, differences, folder
):
    run = copied(twin(**SHORT), folder / "run")
    truncated(run / "checkpoints" / "step-00000004" / "state.json")
    process = done(start(run, **SHORT))
    assert re.search(r"passed over.*step-00000004 is not sound", process.text), process.text
    assert newest(run) == 4
    assert differences(twin(**SHORT), run) == []


# ------------------------------------------------------------------------------ C06: retention


class NotANumberAtFirst:
    """The first evaluation is NaN; the second is the best, whatever comes."""

    def __init__(self) -> None:
        self.evaluations = 0

    def ptrain_evaluation_end(self, metrics) -> None:
        self.evaluations += 1
        for name in metrics:
            metrics[name] = math.nan if self.evaluations == 1 else float(self.evaluations)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(1, [6, 12]), (3, [6, 10, 11, 12]), ("all", list(range(1, 13)))],
)
def test_C06_the_newest_by_number_and_the_best_are_kept_and_a_nan_is_no_best(
    toy, folder, keep, kept
):
    # From 9 to 10 the names sort otherwise than the numbers only without leading noughts.
    toy.train(folder / "run", length="12 steps", keep=keep, callbacks=[NotANumberAtFirst()])
    store = CheckpointStore(folder / "run")
    names = sorted(path.name for path in store.folder.glob("step-*"))
    assert [int(name.removeprefix("step-")) for name in names] == kept
    assert store.find("best").step == store.find("best_ema").step == 6
    assert store.find("last").step == 12


def test_C06_what_is_not_sound_takes_no_place_from_what_is(start, saved_before, folder):
    # Step 2 is all there is. Damage that looks newer must not be what `keep = 1` keeps.
    run = copied(saved_before, folder / "run")
    damaged = copied(run / "checkpoints" / "step-00000002", run / "checkpoints" / "step-00000004")
    flipped(damaged / "model.safetensors")
    done(start(run, fault={"at": "committed:3", "do": "kill"}, **ONE_KEPT), KILLED)
    assert newest(run) == 3


# ------------------------------------------------------------------------- C07: a run that moves


def test_C07_a_moved_run_goes_on_and_is_evaluated_and_predicts(
    start, twin, three_saved, differences, folder
):
    moved = folder / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.copytree(three_saved, folder / "run")
    (folder / "run").rename(moved)
    done(start(moved, **SHORT))
    assert differences(twin(**SHORT), moved) == []
    again = folder / "again"
    moved.rename(again)
    for command in (
        ("evaluate", again),
        ("evaluate", again, "--weights", "ema", "--checkpoint", "last"),
        ("predict", again, folder / "input.txt"),
    ):
        (folder / "input.txt").write_text("1 2 3 4 5 6\n0 0 0 0 0 0\n")
        output = folder / f"{command[0]}.txt"
        process = done(forkserver.Process("-m", "plugin_trainer", *command, output=output))
    assert [json.loads(line)["class"] in (0, 1) for line in process.text.splitlines()] == [True] * 2
    for pointer in (again / "checkpoints").glob("*.json"):
        assert str(folder) not in pointer.read_text()
        assert "/" not in json.loads(pointer.read_text())["checkpoint"]


# --------------------------------------------------------------------------------- C08: modes


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o002])
def test_C08_every_file_and_folder_of_a_run_has_the_mode_that_the_umask_says(start, folder, umask):
    callbacks = ["-progress_bar", "early_stopping", "faults"]  # with TensorBoard
    settings = {**SHORT, "length": "2 steps", "evaluate": "1 steps", "callbacks": callbacks}
    done(start(folder / "run", options={"umask": umask}, **settings))
    paths = [folder / "run", *(folder / "run").rglob("*")]
    assert {path.name for path in paths} >= {"metrics.jsonl", "run.json", "run.toml", "best.json"}
    assert {"model.safetensors", "manifest.json", "tensorboard"} <= {path.name for path in paths}
    wrong = {
        str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777)
        for path in paths
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}


# ---------------------------------------------------------------------------------- C09: rivals


def test_C09_a_second_process_is_refused_until_the_first_is_killed_even_if_its_workers_live_on(
    start, twin, differences, folder, reached
):
    settings = {**SHORT, "data_settings__workers": 2}
    run = folder / "run"
    # Held while they load: a worker looks for its main process only between two batches.
    first = start(run, fault={"at": "loading:8", "do": "pause"}, **settings)
    reached.wait(first)
    workers = {child for child in children_of(first.pid) if is_alive(child)}
    assert len(workers) == 2
    before = content(run / "metrics.jsonl")
    rival = {"output": folder / "rival.txt"}
    second = done(start(run, options=rival, **settings), 2)
    assert f"error: the run folder {run} is in use by process {first.pid}" in second.text
    assert content(run / "metrics.jsonl") == before
    first.signal(signal.SIGKILL)
    assert first.wait() == KILLED
    done(start(run, **settings))
    assert all(map(is_alive, workers))
    reached.over()
    assert differences(twin(**settings), run) == []


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still be listed, as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
