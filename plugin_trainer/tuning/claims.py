"""Who works on which trial, whose worker is gone, and how another takes its trial over.

A new trial is claimed in the database: it goes from WAITING to RUNNING for one worker only. Whether
the worker of a RUNNING trial still lives is seen in two ways. On its own machine it holds a lock of
the kernel's, which goes with the process, however that ends. From anywhere, it writes a sign of
life into the database (Optuna's heartbeat) every so many seconds.

    lock free                    the worker is gone: its trial goes on in the same run folder
    lock held, no sign of life   it hangs, or cannot reach the database: its trial goes on in a copy
                                 of the run folder, and the token in the database is the new
                                 worker's. The old one, should it come back, finds that and leaves
    its folder is not here       only workers with that folder can go on with it
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plugin_trainer.errors import RunFolderError, StudyError
from plugin_trainer.files import read_object, write_json
from plugin_trainer.run_folder import RunFolder, is_held

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

ABOUT = "study.json"
FOLDER, REASON, STEPS = "folder", "reason", "steps"
"""User attributes of a trial: what people look for."""

WORKER = "ptrain:worker"
"""The system attribute of a trial that says who works on it."""

MOST_TRIES = 3
"""So often a trial is begun again at one step, before what kills it there is taken for its own."""

Life = Literal["alive", "silent", "gone", "elsewhere", "lost"]
"""Of a RUNNING trial's worker: at work; hanging; dead; at work in another folder; dead in another
folder.
"""


class TrialLost(StudyError):
    """Another worker has taken this one's trial over."""


@dataclass(frozen=True)
class Place:
    """A study's folder on this machine; its id tells it from other machines' folders of the study.

    id  empty for a folder that nobody has worked in
    """

    folder: Path
    id: str = ""

    @classmethod
    def find(cls, folder: Path) -> Place:
        """The place as it is."""
        return cls(folder, str(read_object(folder / ABOUT).get("id", "")))

    @classmethod
    def make(cls, folder: Path) -> Place:
        """The place, with an id from now on. Raises StudyError if the disk refuses."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with cls(folder).locked():
                if not cls.find(folder).id:
                    write_json(folder / ABOUT, {"id": uuid.uuid4().hex})
        except OSError as error:
            raise StudyError(
                f"the study's folder {folder} cannot be written: {error.strerror or error}"
            ) from error
        return cls.find(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For this process alone among those of the folder; the others wait, so be short."""
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


# --------------------------------------------------------------------------------- signs of life


@dataclass(frozen=True)
class Signs:
    """What is known of the workers of a study's RUNNING trials."""

    place: Place
    stage_folder: Path
    silent: frozenset[int]
    patience: timedelta

    def of(self, trial: FrozenTrial) -> Life:
        """Of one trial's worker."""
        worker = trial.system_attrs.get(WORKER) or {}
        silent = trial._trial_id in self.silent
        if not worker:  # it died, or is about to say who it is
            begun = trial.datetime_start or datetime.min
            return "gone" if datetime.now() - begun > self.patience else "alive"
        if worker["place"] != self.place.id:
            return "lost" if silent else "elsewhere"
        if is_held(lock_folder(self.stage_folder, trial.number, int(worker["copy"]))):
            return "silent" if silent else "alive"
        # A lock may not reach from one machine to another that shares the folder.
        return "gone" if silent or worker["host"] == socket.gethostname() else "alive"


def signs_of_life(study: optuna.Study, place: Place, stage_folder: Path) -> Signs:
    """The signs of life as they are now."""
    storage = study._storage
    silent: list[int] = []
    interval = getattr(storage, "get_heartbeat_interval", lambda: None)()
    if interval:
        silent = storage._get_stale_trial_ids(study._study_id)  # type: ignore[attr-defined]
    return Signs(place, stage_folder, frozenset(silent), timedelta(seconds=2 * (interval or 60)))


def lock_folder(stage_folder: Path, number: int, copy: int) -> Path:
    """Where the lock of who works on a trial lies."""
    return stage_folder / ".claims" / _run_name(number, copy)


def run_folder(stage_folder: Path, number: int, copy: int) -> Path:
    """The run folder of a trial, or of its so manyeth copy, after its workers have hung."""
    return stage_folder / "trials" / _run_name(number, copy)


def _run_name(number: int, copy: int) -> str:
    return f"{number:04}-{copy + 1}" if copy else f"{number:04}"


# ----------------------------------------------------------------------------------------- claims


class Claim:
    """A trial that this process works on, until it is released or taken away.

    begun   whether another process, or this one before, has begun with it
    trial   Optuna's
    folder  the run folder
    url     the database
    """

    def __init__(
        self,
        trial: optuna.Trial,
        *,
        folder: Path,
        lock: RunFolder,
        token: str,
        begun: bool,
        url: str,
    ) -> None:
        self.trial = trial
        self.url = url
        self.number = trial.number
        self.folder = folder
        self.begun = begun
        self._lock = lock
        self._token = token
        self._lost = False
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> Claim:
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pulse.join(timeout=1)
        self._lock.release()

    def refuse_if_lost(self, *, look: bool = False) -> None:
        """Raise TrialLost if another worker has the trial now.

        look  in the database; otherwise what the last sign of life found
        """
        if look and not self._lost:
            self._lost = self._is_lost()
        if self._lost:
            raise TrialLost(
                f"trial {self.number} was taken over by another worker",
                hint="this one gave no sign of life for too long",
            )

    def forget_tries(self) -> None:
        """Note that this process was asked to stop: that it stops is not the trial's doing."""
        storage, trial_id = self.trial.storage, self.trial._trial_id
        worker = storage.get_trial(trial_id).system_attrs[WORKER]
        storage.set_trial_system_attr(trial_id, WORKER, {**worker, "tries": 0})

    def _is_lost(self) -> bool:
        frozen = self.trial.storage.get_trial(self.trial._trial_id)
        return (
            frozen.state.is_finished()
            or (frozen.system_attrs.get(WORKER) or {}).get("token") != self._token
        )

    def _beat(self) -> None:
        """Give signs of life, and see whether the trial is still this worker's."""
        storage = self.trial.storage
        interval = getattr(storage, "get_heartbeat_interval", lambda: None)()
        while interval and not self._over.wait(interval):
            # A database that is away for a while is no reason to stop; the next sign may reach it.
            with contextlib.suppress(Exception):
                if self._is_lost():
                    self._lost = True
                    return
                storage.record_heartbeat(self.trial._trial_id)  # type: ignore[attr-defined]


class Claims:
    """The trials of one stage, to be claimed by this process.

    prepare       is called with a trial before it is opened: it sets the sampler
    restart_lost  whether to begin trials anew whose folder is on another machine
    """

    def __init__(
        self,
        study: optuna.Study,
        place: Place,
        stage_folder: Path,
        *,
        url: str,
        prepare: Callable[[FrozenTrial], None],
        restart_lost: bool = False,
    ) -> None:
        self.study = study
        self.place = place
        self.stage_folder = stage_folder
        self._url = url
        self._prepare = prepare
        self._restart_lost = restart_lost

    def next(self, *, total: int) -> Claim | None:
        """A trial whose worker is gone, else one that nobody has begun; None if there is none.

        total  only trials of lower numbers take part
        """
        from optuna.trial import TrialState

        with self.place.locked():
            trials = self.study.get_trials(deepcopy=False)[:total]
            signs = signs_of_life(self.study, self.place, self.stage_folder)
            for trial in trials:
                if trial.state == TrialState.RUNNING and (claim := self._go_on(trial, signs)):
                    return claim
            for trial in trials:
                if trial.state == TrialState.WAITING and (claim := self._begin(trial)):
                    return claim
        return None

    def _begin(self, trial: FrozenTrial) -> Claim | None:
        from optuna.trial import TrialState

        storage = self.study._storage
        try:
            if not storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return None  # a worker on another machine was faster
        except RuntimeError:  # and has ended it already
            return None
        return self._claim(trial, copy=0, begun=False)

    def _go_on(self, trial: FrozenTrial, signs: Signs) -> Claim | None:
        """Take over a trial whose worker is gone or hangs."""
        life = signs.of(trial)
        if life not in ("silent", "gone") and not (life == "lost" and self._restart_lost):
            return None
        worker = trial.system_attrs.get(WORKER) or {}
        copy = int(worker.get("copy", 0))
        here = worker.get("place", self.place.id) == self.place.id
        if life == "silent":
            before = run_folder(self.stage_folder, trial.number, copy)
            copy += 1
            _copy(before, run_folder(self.stage_folder, trial.number, copy))
        return self._claim(trial, copy=copy if here else 0, begun=True)

    def _claim(self, trial: FrozenTrial, *, copy: int, begun: bool) -> Claim | None:
        from optuna.exceptions import UpdateFinishedTrialError

        lock = RunFolder(lock_folder(self.stage_folder, trial.number, copy))
        try:
            lock.hold()
        except RunFolderError:
            if is_held(lock.path):
                return None
            raise  # the disk refuses
        try:
            token = uuid.uuid4().hex
            folder = run_folder(self.stage_folder, trial.number, copy)
            storage = self.study._storage
            worker: dict[str, Any] = {
                "token": token,
                "place": self.place.id,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "copy": copy,
                **self._tries(trial, folder),
            }
            its_folder = str(folder.relative_to(self.place.folder))
            storage.set_trial_system_attr(trial._trial_id, WORKER, worker)
            storage.set_trial_user_attr(trial._trial_id, FOLDER, its_folder)
            if hasattr(storage, "record_heartbeat"):
                storage.record_heartbeat(trial._trial_id)
            self._prepare(trial)
            opened = _open(self.study, trial._trial_id)
            return Claim(opened, folder=folder, lock=lock, token=token, begun=begun, url=self._url)
        except UpdateFinishedTrialError:  # its worker has ended it since we looked
            lock.release()
            return None
        except BaseException:
            lock.release()
            raise

    def _tries(self, trial: FrozenTrial, folder: Path) -> dict[str, int]:
        """How often the trial was begun without getting beyond the step it stands at."""
        worker: Mapping[str, Any] = trial.system_attrs.get(WORKER) or {}
        step = steps_saved(folder)
        tries = int(worker.get("tries", 0)) if step == worker.get("at_step", step) else 0
        return {"at_step": step, "tries": tries + 1}


def steps_saved(folder: Path) -> int:
    """The step of a run's newest checkpoint, going by its name; 0 if there is none."""
    names = (path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _open(study: optuna.Study, trial_id: int) -> optuna.Trial:
    import optuna

    return optuna.Trial(study, trial_id)


def tries_of(trial: optuna.Trial) -> int:
    """How often a trial was begun at the step it stands at, this time included."""
    frozen = trial.storage.get_trial(trial._trial_id)
    return int((frozen.system_attrs.get(WORKER) or {}).get("tries", 1))


def _copy(folder: Path, to: Path) -> None:
    """A run folder as it is on the disk, without what says that somebody works in it."""
    shutil.rmtree(to, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, to, ignore=shutil.ignore_patterns(".lock", ".*.tmp-*"))
