"""A run folder: made, locked, and the files in it that tell what the run is and how it went."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any

from plugin_trainer.errors import NotSaved, RunFolderError
from plugin_trainer.files import in_json, read_object, write_json, write_text

RUNS = Path("runs")
METRICS = "metrics.jsonl"
TRACEBACK = "error.txt"

_LOCKS: set[IO[str]] = set()


def _close_in_forked_processes(lock: IO[str]) -> None:
    """Keep a lock to this process: a loader's worker that outlives it would hold the folder on."""
    _watch_forks()
    _LOCKS.add(lock)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for lock in _LOCKS:
        lock.close()
    _LOCKS.clear()


class RunFolder:
    """One run's folder, held by this process until `release`.

    The lock is the kernel's: it goes with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.assets = path / "assets"
        self._about: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._descriptor: int | None = None  # of the folder, whatever its path means later
        self._is_run = False
        self._metrics: FileIO | None = None
        self._lines = 0

    # ------------------------------------------------------------------------------- holding

    def hold(self) -> None:
        """Take the lock. Raises RunFolderError if another process has it or the disk refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.path} cannot be written: {error.strerror}",
                hint="choose another with --out",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunFolderError(
                f"the run folder {self.path} is in use by process {holder}",
                hint="wait for it, stop it, or choose another folder with --out",
            ) from None
        with contextlib.suppress(OSError):  # who holds it is good to know; a full disk may not
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        self._lock = lock
        self._descriptor = os.open(self.path, os.O_RDONLY)
        _close_in_forked_processes(lock)

    def check_in_place(self) -> None:
        """Raise NotSaved if the folder that is held was moved, deleted, emptied or replaced."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            same = os.path.samestat(os.fstat(self._descriptor), self.path.stat())
            if same and (is_run(self.path) or not self._is_run):
                return
        raise NotSaved(
            f"the run folder {self.path} was moved or deleted while the run was training",
            hint="if it was moved, resume it in its new place: --resume FOLDER",
        )

    def empty(self) -> None:
        """Delete the run in the folder. Only while it is held."""
        # First what makes the folder a run: a process killed here leaves none by halves.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name != "run.toml"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()

    def clean(self) -> None:
        """Remove what killed processes left half-written. Only while it is held."""
        for left in self.path.glob(".*.tmp-*"):
            left.unlink()

    def release(self) -> None:
        """Close what is open and give the lock back."""
        if self._metrics is not None:
            self._metrics.close()
        if self._lock is not None:
            _LOCKS.discard(self._lock)
            self._lock.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._metrics = self._lock = self._descriptor = None

    # --------------------------------------------------------------------------------- about

    def write_settings(self, toml: str) -> None:
        """Write run.toml, the settings as used."""
        write_text(self.path / "run.toml", toml)
        self._is_run = True

    def write_about(self, **entries: Any) -> None:
        """Add entries to run.json. Raises NotSaved if the disk refuses, or the folder is gone."""
        self.check_in_place()
        self._about.update(entries)
        try:
            write_json(self.path / "run.json", self._about)
        except OSError as error:
            raise _not_saved(self.path / "run.json", error) from error

    def begin_about(self) -> None:
        """Begin run.json anew, at the next `write_about`."""
        self._about = {}

    def read_about(self) -> dict[str, Any]:
        """What run.json says; empty if there is none."""
        self._about = read_object(self.path / "run.json")
        return self._about

    # --------------------------------------------------------------------------------- failures

    def add_traceback(self, text: str) -> Path | None:
        """Append the traceback of a failure to error.txt, which any of several processes may do;
        the file, or None if it cannot be written.
        """
        path = self.path / TRACEBACK
        try:
            self.check_in_place()
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except (OSError, NotSaved):
            return None
        return path

    def forget_traceback(self) -> None:
        """Delete what an earlier failure left."""
        (self.path / TRACEBACK).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------- metrics

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, or nothing of it.

        Raises NotSaved if the disk refuses.
        """
        line = json.dumps(in_json(metrics)) + "\n"
        try:
            file = self._open_metrics()
            end = file.tell()
            _write_whole(file, line.encode())
            self._lines += 1
        except OSError as error:
            if self._metrics is not None:
                self._metrics.truncate(end)
            self.check_in_place()
            raise _not_saved(self.path / METRICS, error) from error

    def count_metrics(self) -> int:
        """How many lines metrics.jsonl has, all of them on the disk."""
        os.fsync(self._open_metrics().fileno())
        return self._lines

    def cut_metrics_after(self, count: int) -> None:
        """Drop the lines after a checkpoint, which a resumed run will log again, and one that a
        crash cut short.
        """
        path = self.path / METRICS
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)[:count]
            os.truncate(path, sum(len(line) for line in lines if line.endswith(b"\n")))

    def _open_metrics(self) -> FileIO:
        if self._metrics is None:
            path = self.path / METRICS
            self._metrics = FileIO(path, "a")
            self._lines = path.read_bytes().count(b"\n")
        return self._metrics


def _not_saved(path: Path, error: OSError) -> NotSaved:
    return NotSaved(
        f"{path} could not be written: {error.strerror}",
        hint="make room, then go on with --resume auto",
    )


def _write_whole(file: FileIO, text: bytes) -> None:
    """A full disk takes a part of the text before it refuses."""
    while text:
        text = text[file.write(text) :]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder."""
    return (folder / "run.toml").is_file()


def is_held(folder: Path) -> bool:
    """Whether some process is training in the folder now; looking changes nothing in it."""
    try:
        with (folder / ".lock").open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def find_run(name: str) -> Path:
    """The run folder for a path or for the name of a run under runs/.

    Raises RunFolderError, naming the runs there are, if there is none.
    """
    for candidate in (Path(name), RUNS / name):
        if is_run(candidate):
            return candidate
    if Path(name).is_dir():
        raise RunFolderError(f"{name} is not a run folder: it has no run.toml")
    names = [folder.name for folder in list_runs()]
    raise RunFolderError(
        f"there is no run '{name}'",
        hint=f"under {RUNS}/ there are: {', '.join(names)}"
        if names
        else f"there is none under {RUNS}/",
    )


def list_runs(folder: Path = RUNS) -> list[Path]:
    """The run folders in a folder, the oldest first."""
    if not folder.is_dir():
        return []
    found = []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # one that may not be looked into hides no other
            if is_run(entry):
                found.append(((entry / "run.toml").stat().st_mtime, entry.name, entry))
    return [entry for *_, entry in sorted(found)]


def new_folder(base: str, *, under: Path = RUNS) -> Path:
    """Make the first free of runs/base-1, base-2, ...; two processes never get the same one."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("-.") or "run"
    under.mkdir(exist_ok=True)
    taken = [
        int(match[1])
        for entry in under.iterdir()
        if (match := re.fullmatch(rf"{re.escape(stem)}-(\d+)", entry.name))
    ]
    number = max(taken, default=0) + 1
    while True:
        path = under / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def now() -> str:
    """The time, for people, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
