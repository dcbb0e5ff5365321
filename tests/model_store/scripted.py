"""One process at a model store, to which something happens at one exact moment.

    scripted.py NOTES DO AT ACTION ARGUMENT...

AT is the number of a file operation of this process (creating, renaming or deleting something, or
opening the registry), at which it is killed, or pauses until the file NOTES/go is there.
ACTION is one of the functions below, done as the user STORE_USER if there is such a variable.
Prints what it answered and how many file operations there were.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

_CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate")


class Moment:
    """Counts file operations until the one at which something happens."""

    def __init__(self, notes: Path, *, do: str, at: int) -> None:
        self.notes, self.do, self.at = notes, do, at
        self.operations = 0
        self.busy = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, about: tuple) -> None:
        if self.busy or not _changes(event, about):
            return
        self.operations += 1
        if self.operations != self.at:
            return
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = True
        (self.notes / "reached").touch()
        deadline = time.monotonic() + 60
        while not (self.notes / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        self.busy = False


def _changes(event: str, about: tuple) -> bool:
    if event == "open":
        path, _, flags = about
        return not isinstance(path, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in (*_CHANGES, "sqlite3.connect")


def register(store, name: str, count: str, *options: str) -> list[int]:
    """Register the run several times; the numbers."""
    return [
        store.register("first", name=name, once="once" in options, aliases=["x"]).version.number
        for _ in range(int(count))
    ]


def register_and_remove(store, name: str, count: str) -> list[int]:
    """Register, take the alias away, and remove, again and again."""
    numbers = []
    for _ in range(int(count)):
        version = store.register("first", name=name).version
        store.remove(str(version))
        numbers.append(version.number)
    return numbers


def remove(store, reference: str) -> None:
    """Remove a version."""
    store.remove(reference)


def export(store, reference: str, folder: str) -> None:
    """Export a version."""
    store.export(reference, folder)


def move(store, name: str, alias: str) -> None:
    """Move an alias between two versions for ever."""
    while True:
        for number in (1, 2):
            store.set_alias(f"{name}:{number}", alias)


def read(store, name: str) -> list[str]:
    """Look at everything."""
    with tempfile.TemporaryDirectory() as folder:
        store.export(name, Path(folder) / "out")
    assert list(store.load(name, trust=True).predict(["1 2 3"]))  # it may be another user
    return [str(version) for version in store.versions()] + store.verify()[1]


def main() -> None:
    from plugin_trainer.model_store import Store, StoreError

    if user := int(os.environ.get("STORE_USER", "0")):
        # Before the change: an interpreter may be where that user cannot read it.
        importlib.import_module("plugin_trainer.training.inference")
        os.setgid(user)
        os.setuid(user)
    notes, do, at, action, *arguments = sys.argv[1:]
    moment = Moment(Path(notes), do=do, at=int(at))
    try:
        answer = globals()[action](Store(), *arguments)
    except StoreError as error:
        print(error.message)
        sys.exit(1)
    moment.busy = True
    print(json.dumps({"answer": answer, "operations": moment.operations}))


if __name__ == "__main__":
    main()
