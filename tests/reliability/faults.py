"""A plugin that lets something go wrong at one exact moment of a run.

The environment variable PTRAIN_FAULT says what, as JSON:

    at       the moment: "MOMENT:N", see below
    do       "kill" (SIGKILL), "pause" (write FOLDER/reached and wait for FOLDER/go; write
             FOLDER/signalled once the run has noticed a signal meanwhile), "raise",
             "fill" (fill the disk of the run folder up) or "photograph" (copy the run folder to
             FOLDER/photo-K/run as it is before each file operation K of the save "file:N")
    folder   where notes are left for whoever waits for them

Moments, N being `run.progress.step` where nothing else is said:

    run_start  epoch_start  forward  step_end  evaluating_raw  evaluating_ema  epoch_end  saving
    committed  run_end
    registering:0    the plugins are being loaded
    constructed:0    the run is being put together: this callback was just made
    loading:N        sample N of this process is about to be loaded
    compiling:N      graph N is about to be compiled, by the backend "paused"
    file:N:K         the K-th file operation since the checkpoint of step N was begun is about to be
                     made: creating, renaming or deleting a file or a folder of the run
    file:N-again:K   the same, where the checkpoint of step N is written a second time
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from plugin_trainer import CallbackSpec

PTRAIN_API = 1

_OPERATIONS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod")


def ptrain_callbacks():
    """The one callback."""
    _register_backend()  # before the settings that name it are looked at
    if _fault().get("at") == "registering:0":
        Faults()._reach("registering:0")
    return [CallbackSpec(name="faults", target="ptrain_local_faults:Faults")]


def _fault() -> dict:
    return json.loads(os.environ.get("PTRAIN_FAULT", "{}"))


class Broken(Exception):
    """What "raise" raises."""


class Faults:
    """Waits for its moment."""

    def __init__(self) -> None:
        fault = _fault()
        self.at, self.do = fault.get("at", ""), fault.get("do", "")
        self.notes = Path(fault.get("folder", "."))
        self.run = None
        self.run_folder: Path | None = None
        self.operations: Counter[str] = Counter()
        self.saving = ""
        self.loaded = self.graphs = 0
        if self.at.startswith("loading"):
            toy = sys.modules["ptrain_local_toy"]
            toy.Noisy.before_loading = self._loading
        if self.at.startswith("compiling"):
            _compiled.append(self._compiling)
        self._reach("constructed:0")

    # ------------------------------------------------------------------------------- moments

    def ptrain_run_start(self, run) -> None:
        self.run, self.run_folder = run, run.folder
        if self.at.startswith("file"):
            sys.addaudithook(self._operation)
        if self.at.startswith("forward"):
            run.model.register_forward_pre_hook(lambda model, given: self._forward(run))
        self._reach(f"run_start:{run.progress.step}")

    def ptrain_epoch_start(self, run) -> None:
        self._reach(f"epoch_start:{run.progress.step}")

    def ptrain_step_end(self, run) -> None:
        self._reach(f"step_end:{run.progress.step}")

    def ptrain_evaluation_batch_end(self, run, weights) -> None:
        self._reach(f"evaluating_{weights}:{run.progress.step}")

    def ptrain_epoch_end(self, run) -> None:
        self._reach(f"epoch_end:{run.progress.step}")

    def ptrain_checkpoint_save(self, run) -> None:
        again = str(run.progress.step) in self.operations
        self.saving = f"{run.progress.step}-again" if again else str(run.progress.step)
        self._reach(f"saving:{run.progress.step}")

    def ptrain_checkpoint_committed(self, run) -> None:
        self._reach(f"committed:{run.progress.step}")

    def ptrain_run_end(self, run) -> None:
        self._reach(f"run_end:{run.progress.step}")

    def _forward(self, run) -> None:
        if run.model.training:
            self._reach(f"forward:{run.progress.step}")

    def _loading(self, index: int) -> None:
        self.loaded += 1
        self._reach(f"loading:{self.loaded}")

    def _compiling(self) -> None:
        self.graphs += 1
        self._reach(f"compiling:{self.graphs}")

    def _operation(self, event: str, about: tuple) -> None:
        if not self.saving or not _changes_files(event, about):
            return
        # What is inside a folder being deleted goes by its bare name.
        path = Path(os.fsdecode(about[0]))
        if path.is_absolute() and not path.is_relative_to(self.run_folder.absolute()):
            return
        self.operations[self.saving] += 1
        number = self.operations[self.saving]
        if self.do == "photograph" and self.at == f"file:{self.saving}":
            shutil.copytree(self.run_folder, self.notes / f"photo-{number}" / "run")
        self._reach(f"file:{self.saving}:{number}")

    # ---------------------------------------------------------------------------- what is done

    def _reach(self, moment: str) -> None:
        if moment != self.at:
            return
        self.at = ""
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.do == "pause":
            self._pause()
        elif self.do == "raise":
            raise Broken(moment)
        elif self.do == "fill":
            fill(self.run_folder)

    def _pause(self) -> None:
        (self.notes / "reached").touch()
        deadline = time.monotonic() + 60
        while not (self.notes / "go").exists():
            time.sleep(0.002)
            if self.run is not None and self.run.signal:
                (self.notes / "signalled").touch()
            if time.monotonic() > deadline:
                os._exit(99)  # nobody is waiting any more


def fill(folder: Path) -> None:
    """Leave not a byte free on the disk of a folder; for small disks made for it."""
    with (folder.parent / "filler").open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def _changes_files(event: str, about: tuple) -> bool:
    if event == "open":
        path, _, flags = about
        writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return writing and not isinstance(path, int)
    return event in _OPERATIONS


_compiled: list[Callable[[], None]] = []


def _register_backend() -> None:
    from torch import _dynamo

    def paused(graph, inputs):
        # Not this function's own list: a process may have imported this file more than once.
        for waiting in sys.modules["ptrain_local_faults"]._compiled:
            waiting()
        return graph.forward

    with contextlib.suppress(AssertionError):  # it is registered
        _dynamo.register_backend(paused, name="paused")
