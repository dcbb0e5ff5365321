"""SIGTERM and Ctrl-C at any moment: S01 to S03 of the reliability bar.

The signals are real, sent from outside to a process that is held at an exact moment until the
signal has been sent.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from plugin_trainer.training.checkpointing.store import CheckpointStore

pytestmark = pytest.mark.process

# Nothing but the first evaluation is a best, and nothing but that and a signal writes a checkpoint.
RARELY = {"save": "never", "best.mode": "max"}
OFTEN = {"save": "1 steps"}
WORKERS = {**RARELY, "data_settings__workers": 2}
COMPILED = {**RARELY, "compile.backend": "paused", "length": "4 steps"}


def newest(run: Path) -> int:
    found, passed_over = CheckpointStore(run).newest_sound()
    assert passed_over == []
    return found.step if found is not None else 0


def about(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


# ---------------------------------------------------------------------- S01: at every moment


MOMENTS = [
    # where it is held, the settings, the steps that are made before it ends
    pytest.param("run_start:0", RARELY, 1, id="the-start"),
    pytest.param("forward:0", RARELY, 1, id="the-first-step"),
    pytest.param("forward:7", RARELY, 8, id="a-step"),
    pytest.param("step_end:7", RARELY, 7, id="a-steps-end"),
    pytest.param("evaluating_raw:6", RARELY, 6, id="an-evaluation"),
    pytest.param("evaluating_ema:6", RARELY, 6, id="an-evaluation-of-the-average"),
    pytest.param("epoch_end:6", RARELY, 6, id="an-epochs-end"),
    pytest.param("epoch_start:6", RARELY, 7, id="an-epochs-start"),
    pytest.param("loading:40", RARELY, None, id="waiting-for-data"),
    pytest.param("loading:15", WORKERS, None, id="waiting-for-workers"),
    pytest.param("saving:5", OFTEN, 5, id="before-a-checkpoint-is-written"),
    pytest.param("file:5:3", OFTEN, 5, id="while-a-checkpoint-is-written"),
    pytest.param("committed:5", OFTEN, 5, id="after-a-checkpoint-is-written"),
    pytest.param("compiling:1", COMPILED, 1, id="compiling"),
]


@pytest.mark.parametrize(("moment", "settings", "step"), MOMENTS)
def test_S01_sigterm_at_any_moment_leaves_a_checkpoint_and_the_run_goes_on_exactly(
    start, twin, reached, differences, leftovers, folder, moment, settings, step
):
    run = folder / "run"
    process = start(run, fault={"at": moment, "do": "pause"}, **settings)
    interrupted(process, reached, signal.SIGTERM)
    assert process.wait() == 143, process.text
    assert "interrupted: SIGTERM was received" in process.text
    assert "Traceback" not in process.text
    ended = about(run)
    assert (ended["status"], ended["step"]) == ("interrupted", newest(run))
    assert step is None or newest(run) == step
    process = start(run, **settings)
    assert process.wait() == 0, process.text
    assert differences(twin(**settings), run) == []
    assert leftovers(run) == []


@pytest.mark.parametrize(
    ("number", "name", "moment"),
    [
        (signal.SIGINT, "Ctrl-C", "forward:7"),
        (signal.SIGINT, "Ctrl-C", "loading:15"),
        (signal.SIGHUP, "SIGHUP", "loading:15"),
    ],
)
def test_S01_what_a_terminal_sends_goes_to_the_workers_too_and_only_stops_the_run(
    start, twin, reached, differences, folder, number, name, moment
):
    run = folder / "run"
    process = start(run, fault={"at": moment, "do": "pause"}, **WORKERS)
    interrupted(process, reached, number, group=True)
    assert process.wait() == 128 + number, process.text
    assert f"interrupted: {name} was received" in process.text
    assert "Traceback" not in process.text
    assert about(run)["step"] == newest(run) > 0
    process = start(run, **WORKERS)
    assert process.wait() == 0, process.text
    assert differences(twin(**WORKERS), run) == []


def interrupted(process, reached, number, *, group=False) -> None:
    reached.wait(process)
    if Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
        time.sleep(0.3)  # a worker is held: let the main process run out of batches
    process.signal(number, group=group)
    reached.over()


def test_S01_sigterm_before_there_is_a_run_leaves_one_that_starts(
    start, twin, reached, differences, folder
):
    # While the process still puts the run together: it ends by the signal itself.
    run = folder / "run"
    process = start(run, **RARELY)
    process.signal(signal.SIGTERM)
    assert process.wait() in (-signal.SIGTERM, 143), process.text
    for moment in ("registering:0", "constructed:0"):
        notes = folder / moment
        notes.mkdir()
        process = start(run, fault={"at": moment, "do": "pause", "folder": str(notes)}, **RARELY)
        reached.wait(process, notes)
        process.signal(signal.SIGTERM)
        assert process.wait() in (-signal.SIGTERM, 143), process.text
        assert "Traceback" not in process.text
    process = start(run, **RARELY)
    assert process.wait() == 0, process.text
    assert differences(twin(**RARELY), run) == []


@pytest.mark.parametrize("moment", ["evaluating_raw:18", "file:18:3", "run_end:18"])
def test_S01_sigterm_when_all_steps_are_made_lets_the_run_finish(
    start, twin, reached, differences, folder, moment
):
    run = folder / "run"
    process = start(run, fault={"at": moment, "do": "pause"}, **OFTEN)
    interrupted(process, reached, signal.SIGTERM)
    assert process.wait() == 0, process.text
    assert about(run)["status"] == "finished"
    assert differences(twin(**OFTEN), run) == []


# ------------------------------------------------------------------------ S02: a second signal


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("moment", "signals", "code", "step"),
    [
        # where it is held, what it is sent there, its exit code, what was saved before
        pytest.param("forward:7", (TERM, TERM), 143, 6, id="in-a-step"),
        pytest.param("evaluating_ema:9", (INT, INT), 130, 6, id="in-an-evaluation"),
        pytest.param("file:6:3", (TERM, TERM), 143, 3, id="while-saving"),
        pytest.param("file:6:3", (TERM, INT), 130, 3, id="while-saving-and-another-one"),
    ],
)
def test_S02_a_second_signal_leaves_at_once_and_spoils_nothing(
    start, twin, reached, differences, leftovers, folder, moment, signals, code, step
):
    settings = {"save": "3 steps", "best.mode": "max"}
    run = folder / "run"
    process = start(run, fault={"at": moment, "do": "pause"}, **settings)
    reached.wait(process)
    process.signal(signals[0])
    reached.wait(process, note="signalled")
    process.signal(signals[1])  # and nobody lets it go on
    assert process.wait() == code, process.text
    assert newest(run) == step
    process = start(run, **settings)
    assert process.wait() == 0, process.text
    assert "not exact" not in process.text
    assert differences(twin(**settings), run) == []
    assert leftovers(run) == []


# ---------------------------------------------------------------------------- S03: handlers


class Sends:
    """Sends this process signals after a step."""

    def __init__(self, *numbers, step: int = 2) -> None:
        self.numbers, self.step = numbers, step

    def ptrain_step_end(self, run) -> None:
        if run.progress.step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture
def handlers():
    """Handlers of somebody else's, which write down what they get."""
    received = []

    def mine(number, frame):
        received.append(number)

    before = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT)}
    yield mine, received
    for number, handler in before.items():
        signal.signal(number, handler)


def test_S03_a_signal_while_a_failure_is_written_down_loses_nothing(toy, handlers, folder):
    """As torchrun sends it to the others as soon as one process has failed."""
    _, received = handlers

    class Breaks:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                raise ValueError("broken")

        def ptrain_run_failed(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Exception, match="failed in ptrain_step_end at step 3"):
        toy.train(folder / "run", callbacks=[Breaks()])
    about = json.loads((folder / "run" / "run.json").read_text())
    assert (about["status"], about["step"]) == ("failed", 3)
    assert CheckpointStore(folder / "run").find("last").step == 3
    assert received == []  # whoever else answers it may end the process at once


def test_S03_handlers_are_given_back_after_every_ending(toy, handlers, folder):
    mine, _ = handlers
    seen = []

    class Looks:
        def ptrain_run_start(self):
            seen.append(signal.getsignal(signal.SIGTERM))

    class Breaks:
        def ptrain_step_end(self):
            raise ValueError("broken")

    toy.train(folder / "finished", length="2 steps", schedule={}, callbacks=[Looks()])
    result = toy.train(folder / "interrupted", callbacks=[Sends(signal.SIGTERM)])
    with pytest.raises(Exception, match="broken"):
        toy.train(folder / "failed", callbacks=[Breaks()])
    assert (result.status, result.signal) == ("interrupted", signal.SIGTERM)
    assert seen[0] is not mine
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is mine


def test_S03_the_second_signal_goes_to_the_handler_that_was_there_before(toy, handlers, folder):
    _, received = handlers
    with pytest.raises(SystemExit) as left:
        toy.train(folder / "run", callbacks=[Sends(signal.SIGTERM, signal.SIGTERM)])
    assert received == [signal.SIGTERM]
    assert left.value.code == 143


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_S03_what_was_ignored_or_left_to_the_system_is_so_again(toy, folder, ignored):
    before = signal.signal(signal.SIGTERM, ignored)
    try:
        toy.train(folder / "run", length="2 steps", schedule={})
        assert signal.getsignal(signal.SIGTERM) is ignored
    finally:
        signal.signal(signal.SIGTERM, before)


def test_S03_a_run_in_a_thread_is_the_same_and_leaves_the_signals_alone(
    toy, handlers, differences, folder
):
    mine, _ = handlers
    toy.train(folder / "main", length="7 steps")
    seen, failures = [], []

    class Looks:
        def ptrain_step_end(self):
            seen.append(signal.getsignal(signal.SIGTERM))

    def work():
        try:
            toy.train(folder / "thread", length="7 steps", callbacks=[Looks()])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert set(seen) == {mine}
    assert differences(folder / "main", folder / "thread") == []
