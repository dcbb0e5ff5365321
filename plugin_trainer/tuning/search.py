"""All stages of a study, one after the other, each by one worker here or by several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from plugin_trainer.errors import StudyError, TrainingFailed
from plugin_trainer.tuning.beginning import OpenStudy, begin_stage
from plugin_trainer.tuning.claims import signs_of_life
from plugin_trainer.tuning.storage import told_shortly
from plugin_trainer.tuning.studies import Stage, assignments, stages_in
from plugin_trainer.tuning.worker import (
    Manner,
    failed_in,
    grid_points,
    refuse_hopeless,
    work,
)

GAVE_UP = 3
"""What a worker's process exits with that gave up: the one that started it says why."""

STORAGE_VARIABLE = "PTRAIN_STORAGE"

_LOOK_AGAIN_SECONDS = 5


def search(study: OpenStudy, manner: Manner, *, workers: int = 1, trials: int | None = None) -> int:
    """Make the trials that are missing, of every stage.

    workers  how many processes; one is this process
    trials   how many trials in all, of every stage that does not say its own number

    Returns the signal that interrupted it, else 0. Raises GivenUp if trials only fail, StudyError,
    and TrainingFailed if a worker's process came to grief.
    """
    named = stages_in(study.settings)
    for number, its in enumerate(named):
        wanted = None if its["own_total"] else trials
        points = grid_points(study, number)
        if points is not None:
            wanted = min(points, wanted or its["total"])
        stage = begin_stage(study, number, trials=wanted)
        _announce(stage, study, manner, points=points)
        is_last = number == len(named) - 1
        if stopped := _make_trials(study, number, manner, workers=workers, wait=not is_last):
            return stopped
        if not is_last:
            _announce_winner(study.read().stages[number], manner)
    return 0


def _make_trials(study: OpenStudy, number: int, manner: Manner, *, workers: int, wait: bool) -> int:
    """Work on a stage until nothing is left to take.

    wait  for trials that others work on, too: the next stage needs their results
    """
    told = False
    while True:
        stage = study.read().stages[number]
        if stage.is_done:
            return 0
        if _to_take(stage):
            stopped = (
                work(study, number, manner)
                if workers == 1
                else _work_in_processes(study, stage, number, manner, workers=workers)
            )
            if stopped:
                return stopped
            stage = study.read().stages[number]
        if stage.is_done:
            return 0
        lost = _lost(study, stage)
        if any(trial.state == "killed" for trial in stage.trials if trial.number not in lost):
            continue  # of a worker that was killed just now
        busy = [trial.number for trial in stage.trials if trial.state == "running"]
        if lost and not busy:
            raise StudyError(
                f"the worker of {_trials(lost)} is gone, and its run folder is not here",
                hint=[
                    f"to go on: ptrain tune --study {study.name} where that folder is",
                    "to begin anew here: --restart-lost",
                ],
            )
        if not wait:
            manner.say(f"{_trials(busy)} still run elsewhere")
            return 0
        if not told:
            manner.say(f"waiting for {_trials(busy)}, which run elsewhere: the next stage needs it")
            told = True
        time.sleep(_LOOK_AGAIN_SECONDS)


def _to_take(stage: Stage) -> int:
    """How many trials a worker may find to do."""
    return sum(
        trial.state in ("waiting", "killed") and trial.number < stage.total
        for trial in stage.trials
    )


def _lost(study: OpenStudy, stage: Stage) -> list[int]:
    """The trials whose worker is gone and whose run folder is on another machine."""
    assert stage.optuna is not None
    with told_shortly(study.url):
        signs = signs_of_life(stage.optuna, study.place, stage.folder)
        running = [t for t in stage.optuna.get_trials(deepcopy=False) if t.state.name == "RUNNING"]
        return [trial.number for trial in running if signs.of(trial) == "lost"]


def _trials(numbers: Sequence[int]) -> str:
    noun = "trial" if len(numbers) == 1 else "trials"
    return f"{noun} {', '.join(map(str, numbers))}"


# --------------------------------------------------------------------------------- what is said


def _announce(stage: Stage, study: OpenStudy, manner: Manner, *, points: int | None) -> None:
    ended = sum(trial.state in ("finished", "pruned", "failed") for trial in stage.trials)
    left = max(0, stage.total - ended)
    of = f"stage {stage.name}: " if stage.name else ""
    begun = f", {ended} of them done" if ended else ""
    manner.say(f"{of}{stage.total} trials{begun}, sampler {study.tune['sampler']}")
    if points is not None and points > stage.total:
        manner.say(f"the grid has {points} points: {stage.total} of them are tried")
    if left and len(stage.objectives) > 1 and study.tune["pruner"] != "none":
        manner.say("several objectives: no trial is pruned, Optuna prunes by one only")


def _announce_winner(stage: Stage, manner: Manner) -> None:
    winner = stage.winner()
    if winner is None:
        raise StudyError(
            f"stage {stage.name} has no winner to go on from: none of its trials has finished",
            hint=[f"trial {its.number}: {its.reason}" for its in stage.trials if its.reason][:3],
        )
    values = ", ".join(assignments(winner.params))
    manner.say(f"stage {stage.name}: trial {winner.number} wins: {values}")


# ------------------------------------------------------------------------------------ processes


def _work_in_processes(
    study: OpenStudy, stage: Stage, number: int, manner: Manner, *, workers: int
) -> int:
    """Start workers, hand signals on to them, and wait for all to end.

    Returns the signal that came, else 0.
    """
    assert stage.optuna is not None
    with told_shortly(study.url):
        failed_before = failed_in(stage.optuna) if manner.failed is None else manner.failed
    # What it may load was settled when this process opened the study.
    command = [sys.executable, "-m", "plugin_trainer", "tune", "--trust", "--study", study.name]
    command += ["--worker", str(number), "--failed-before", str(failed_before)]
    command += [part for kind in manner.allow for part in ("--allow", kind)]
    command += ["--restart-lost"] if manner.restart_lost else []
    count = min(workers, _to_take(stage))
    processes: list[subprocess.Popen[bytes]] = []
    with _handing_on(processes) as received:
        for place in range(count):
            processes.append(
                subprocess.Popen(
                    command,
                    # Its end says that this process is gone, however that ended.
                    stdin=subprocess.PIPE,
                    env={**os.environ, **surroundings(place, workers), STORAGE_VARIABLE: study.url},
                    # A terminal's Ctrl-C is for this process, which hands it on once.
                    start_new_session=True,
                )
            )
        codes = [process.wait() for process in processes]
    if received:
        return received[0]
    killed = [code for code in codes if code < 0]
    for code in killed:
        manner.say(f"a worker was killed by {signal.Signals(-code).name}: its trial goes on")
    if GAVE_UP in codes:
        with told_shortly(study.url):
            refuse_hopeless(
                stage.optuna, after=study.tune["give_up_after"], failed_before=failed_before
            )
    wrong = [code for code in codes if code > 0 and code != GAVE_UP]
    if wrong:
        raise TrainingFailed(
            f"{len(wrong)} of {len(codes)} workers came to grief, as told above",
            hint=f"to go on: ptrain tune --study {study.name}",
        )
    return 0


def surroundings(place: int, workers: int) -> dict[str, str]:
    """Variables of the so manyeth worker's environment: its share of the cores, and its GPU."""
    found = {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (
        [name for name in named.split(",") if name]
        if named is not None
        else [
            path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))
        ]
    )
    if len(devices) > 1:
        found["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return found


@contextmanager
def _handing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hand signals on to the workers, which stop their runs; a list of those that came.

    A second one makes them leave at once.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    earlier: dict[int, Any] = {}
    for number in (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            earlier[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.terminate()
            if process.stdin is not None:
                process.stdin.close()
