"""What happens when, and what is left of a run: L01 to L05, L07 and L08 of the reliability bar.

More of L01 stands in tests/training/test_loop.py: whole runs, early stopping on request, errors at
every moment, a resume. L06 is in tests/training/test_guard.py.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import plugin_trainer
from plugin_trainer import hookspecs
from plugin_trainer.callbacks import hooks as offered
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.building import import_target
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot

BEHAVIOUR = ("ptrain_move_batch", "ptrain_forward", "ptrain_train_step")
PLAIN = {"schedule": {}, "ema": False, "evaluate": "never", "save": "never", "log": "never"}


ELSEWHERE = ("ptrain_before_optimizer_step", "ptrain_evaluation_start", "ptrain_artifact")
"""Moments that tests/training/ looks at."""


class Diary:
    """Writes down every moment with its step."""

    def __init__(self) -> None:
        self.lines: list[str] = []


def _moment(name: str):
    # pluggy reads which arguments an implementation takes from its signature.
    if name == "ptrain_run_end":

        def note(self, run, result):
            self.lines.append(f"{run.progress.step} run_end {result.status}")
    else:

        def note(self, run):
            self.lines.append(f"{run.progress.step} {name.removeprefix('ptrain_')}")

    return note


for _name in vars(hookspecs):
    if _name.startswith("ptrain_") and _name not in (
        *hookspecs.REGISTRATION_HOOKS,
        *BEHAVIOUR,
        *ELSEWHERE,
    ):
        setattr(Diary, _name, _moment(_name))


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


# -------------------------------------------------------------------------- L01: golden sequences


def test_L01_plain_epochs(toy, folder):
    diary = Diary()
    settings = {**PLAIN, "evaluate": "1 epoch", "save": "1 epoch", "log": "4 steps"}
    toy.train(folder / "run", callbacks=[diary], length="2 epochs", accumulate=3, **settings)
    # Six batches an epoch, three to a step; the nine rows of the evaluation are three batches.
    assert diary.lines == lines("""
0 run_start
0 epoch_start
1 step_end
2 step_end
2 evaluation_batch_end
2 evaluation_batch_end
2 evaluation_batch_end
2 evaluation_end
2 log
2 epoch_end
2 checkpoint_save
2 checkpoint_committed
2 epoch_start
3 step_end
4 step_end
4 evaluation_batch_end
4 evaluation_batch_end
4 evaluation_batch_end
4 evaluation_end
4 log
4 epoch_end
4 checkpoint_save
4 checkpoint_committed
4 run_end finished
""")


def test_L01_a_short_last_window_is_a_step_and_batches_are_not(toy, folder):
    diary = Diary()
    settings = {**PLAIN, "log": "1 steps"}
    toy.train(folder / "run", callbacks=[diary], length="1 epoch", accumulate=4, **settings)
    tail = diary.lines.index("2 step_end") + 1
    assert diary.lines[:tail] == lines("""
0 run_start
0 epoch_start
1 step_end
1 log
2 step_end
""")


def test_L01_early_stopping_ends_a_run_right_after_its_evaluation_is_saved(toy, folder):
    diary = Diary()
    # Nothing moves at such a rate, so the first evaluation is the best.
    toy.train(
        folder / "run",
        callbacks=[diary],
        callback_settings={"early_stopping": {"patience": 2}},
        best={"ties": "oldest"},
        **{**PLAIN, "evaluate": "2 steps", "optimizer": {"learning_rate": 1e-30}},
    )
    brief = [line for line in diary.lines if "evaluation_batch" not in line]
    assert brief == lines("""
0 run_start
0 epoch_start
1 step_end
2 step_end
2 evaluation_end
2 log
2 checkpoint_save
2 checkpoint_committed
3 step_end
4 step_end
4 evaluation_end
4 log
5 step_end
6 step_end
6 evaluation_end
6 log
6 epoch_end
6 checkpoint_save
6 checkpoint_committed
6 run_end stopped early
""")


class Interrupts:
    """Sends this process a SIGTERM at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def ptrain_step_end(self, run) -> None:
        if run.progress.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_L01_an_interrupted_run_is_saved_and_not_evaluated_and_the_rest_follows(toy, folder):
    settings = {**PLAIN, "evaluate": "4 steps", "length": "4 steps"}
    first, second = Diary(), Diary()
    toy.train(folder / "run", callbacks=[first, Interrupts(2)], **settings)
    toy.train(folder / "run", callbacks=[second], **settings)
    assert first.lines == lines("""
0 run_start
0 epoch_start
1 step_end
2 step_end
2 checkpoint_save
2 checkpoint_committed
2 run_end interrupted
""")
    assert [line for line in second.lines if "evaluation_batch" not in line] == lines("""
2 checkpoint_load
2 run_start
3 step_end
4 step_end
4 evaluation_end
4 log
4 checkpoint_save
4 checkpoint_committed
4 run_end finished
""")


def test_L01_an_error_in_a_step_saves_the_step_before_and_ends_with_run_failed(toy, folder):
    class Breaks:
        def ptrain_forward(self, run):
            if run.progress.step == 2 and run.model.training:
                raise ValueError("broken")

    diary = Diary()
    with pytest.raises(PtrainError, match="failed in ptrain_forward"):
        toy.train(folder / "run", callbacks=[diary, Breaks()], **PLAIN)
    assert diary.lines == lines("""
0 run_start
0 epoch_start
1 step_end
2 step_end
2 checkpoint_save
2 checkpoint_committed
2 run_failed
""")


# ------------------------------------------------------------------------ L02: keys of states


class Counts:
    """Counts steps under a key of its choice."""

    def __init__(self, key: str, start: int) -> None:
        self.key, self.count = key, start

    def ptrain_step_end(self) -> None:
        self.count += 1

    def ptrain_checkpoint_save(self, state) -> None:
        state[self.key] = self.count

    def ptrain_checkpoint_load(self, state) -> None:
        self.count = state[self.key]


def test_L02_two_callbacks_keep_their_states_apart(toy, folder):
    settings = {**PLAIN, "length": "4 steps"}
    toy.train(
        folder / "run", callbacks=[Counts("a", 0), Counts("b", 100), Interrupts(2)], **settings
    )
    resumed = Counts("a", 0), Counts("b", 0)
    toy.train(folder / "run", callbacks=resumed, **settings)
    assert [counts.count for counts in resumed] == [4, 104]


def test_L02_two_callbacks_with_one_key_are_an_error_that_names_it(toy, folder):
    callbacks = [Counts("mine", 0), Counts("mine", 100)]
    with pytest.raises(PtrainError, match="mine"):
        toy.train(folder / "run", callbacks=callbacks, **{**PLAIN, "length": "2 steps"})


# ------------------------------------------------------- L03: callbacks that are called once more


# The toy has no early exits: plugins/dactbert/tests/test_early_exit.py.
CALLBACKS = [spec for spec in offered.ptrain_callbacks() if spec.name != "early_exit"]


def made_of(spec, folder):
    """A callback of the core with the settings it cannot do without."""
    settings = {
        # The toy has one that watches val/loss already.
        "early_stopping": {"watch": "val_ema/loss"},
        "register_best": {"name": "toy", "store": str(folder / "models")},
    }.get(spec.name, {})
    return import_target(spec.target)(import_target(spec.settings)(**settings))


@pytest.mark.parametrize("spec", CALLBACKS, ids=lambda spec: spec.name)
def test_L03_each_callback_may_serve_two_runs_and_be_ended_again(toy, folder, spec):
    made = made_of(spec, folder)
    seen = {}

    class Keeps:
        def ptrain_run_end(self, run, result):
            seen.update(run=run, result=result)

    settings = {**PLAIN, "evaluate": "2 steps", "log": "1 steps", "length": "4 steps"}
    settings["ema"] = {"decay": 0.9}
    for name in ("first", "second"):
        result = toy.train(folder / name, named=(), callbacks=[made, Keeps()], **settings)
        assert (result.status, result.step) == ("finished", 4)
    for _ in range(2):
        if hasattr(made, "ptrain_run_end"):
            made.ptrain_run_end(run=seen["run"], result=seen["result"])
        if hasattr(made, "ptrain_run_failed"):
            made.ptrain_run_failed(run=seen["run"], error=ValueError("late"))


@pytest.mark.parametrize("spec", CALLBACKS, ids=lambda spec: spec.name)
def test_L03_each_callback_bears_a_run_that_fails_before_it_starts(toy, folder, spec):
    made = made_of(spec, folder)

    class Breaks:
        def ptrain_run_start(self):
            raise ValueError("broken")

    for callbacks in ([Breaks(), made], [made, Breaks()]):
        with pytest.raises(PtrainError, match="failed in ptrain_run_start"):
            toy.train(folder / "run", named=(), callbacks=callbacks, **PLAIN)


# --------------------------------------------------------------------- L04, L05: order and clock


@pytest.mark.parametrize("accumulate", [1, 2])
def test_L04_a_checkpoint_of_a_step_that_evaluates_carries_that_evaluation(toy, folder, accumulate):
    diary = Diary()
    toy.train(
        folder / "run", callbacks=[diary], accumulate=accumulate, length="6 steps",
        evaluate="2 steps", save="2 steps", log="2 steps", best={"mode": "min"},
    )  # fmt: skip
    logged = {
        line["step"]: {name: value for name, value in line.items() if name.startswith("val")}
        for line in map(json.loads, (folder / "run" / "metrics.jsonl").open())
    }
    at_2 = list(dict.fromkeys(line for line in diary.lines if line.startswith("2 ")))
    assert at_2[:6] == [
        *("2 step_end", "2 evaluation_batch_end", "2 evaluation_end", "2 log"),
        *("2 checkpoint_save", "2 checkpoint_committed"),
    ]
    bests = []
    for step in (2, 4, 6):
        state = read_snapshot(folder / "run" / "checkpoints" / f"step-{step:08d}").state
        assert state["metrics"] == logged[step] != {}
        bests.append(state["best"]["best"])
        assert bests[-1]["value"] == min(
            best["val/loss"] for s, best in logged.items() if s <= step
        )
    pointer = CheckpointStore(folder / "run").pointer("best")
    assert (pointer["step"], pointer["value"]) == (bests[-1]["step"], bests[-1]["value"])


def test_L05_every_cadence_counts_optimizer_steps_and_not_batches(toy, folder):
    diary = Diary()
    toy.train(
        folder / "run", callbacks=[diary], accumulate=2, length="4 epochs",
        evaluate="0.5 epoch", save="5 steps", log="4 steps", ema=False, best={"mode": "max"},
    )  # fmt: skip

    def steps(moment: str) -> list[int]:
        return [int(line.split()[0]) for line in diary.lines if line.split()[1] == moment]

    # Three steps an epoch: half of one is a step and a half, due at the step that completes it.
    assert steps("step_end") == list(range(1, 13))
    assert steps("epoch_end") == [3, 6, 9, 12]
    assert steps("evaluation_end") == [2, 3, 5, 6, 8, 9, 11, 12]
    assert steps("log") == sorted({4, 8, 12} | set(steps("evaluation_end")))
    best = 2  # the loss falls, and higher is better
    assert steps("checkpoint_committed") == [best, 5, 10, 12]


# ----------------------------------------------------------------------- L07: what is left over


@pytest.mark.process
@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_L07_the_run_and_the_model_are_freed_once_fit_is_over(toy, folder, ending, workers):
    held = []

    class Holds:
        def ptrain_step_end(self, run):
            if not held:
                held.extend(map(weakref.ref, (run, run.model, run.optimizer, run.ema)))
            if run.progress.step == 2 and ending == "failed":
                raise ValueError("broken")

    callbacks = [Holds(), *([Interrupts(2)] if ending == "interrupted" else [])]
    settings = {"length": "3 steps", "schedule": {}, "workers": workers}
    try:
        result = toy.train(folder / "run", callbacks=callbacks, **settings)
        assert result.status == ending
        del result
    except PtrainError:
        assert ending == "failed"
    gc.collect()
    assert [reference() for reference in held] == [None] * 4


# ------------------------------------------------------------------------------ L08: workers


def children() -> set[int]:
    """The processes that this one has started and that still run."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread, or a child, may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return {child for child in found if _runs(child)}


def _runs(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Breaks(Dataset):
    """Breaks while a sample is loaded, or does not."""

    def __init__(self, size: int, at: int = -1) -> None:
        self.size, self.at = size, at

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        if index == self.at:
            raise ValueError("this sample is broken")
        return torch.ones(4), torch.tensor(1)


class Seen:
    """Sees which workers there are, and breaks or asks for the end at a step."""

    def __init__(self, ending: str) -> None:
        self.ending, self.workers = ending, set()
        self.before = children()

    def ptrain_step_end(self, run) -> None:
        self.workers |= children() - self.before
        if run.progress.step == 2 and self.ending == "callback":
            raise ValueError("the callback is broken")
        if run.progress.step == 2 and self.ending == "interrupt":
            raise KeyboardInterrupt


@pytest.mark.process
@pytest.mark.parametrize("persistent", [False, True], ids=["new-each-epoch", "persistent"])
@pytest.mark.parametrize("ending", ["finished", "callback", "worker", "interrupt"])
def test_L08_workers_are_gone_however_a_run_ends(toy, folder, ending, persistent):
    data = Breaks(64, at=63 if ending == "worker" else -1)

    def loader(data):
        return DataLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent)

    seen = Seen(ending)
    try:
        plugin_trainer.fit(
            nn.Linear(4, 2), loader(data), loader(Breaks(8)), loss="CrossEntropyLoss",
            length="1 epoch", callbacks=["-progress_bar", "-tensorboard", seen], out=folder / "run",
        )  # fmt: skip
    except (PtrainError, KeyboardInterrupt):
        assert ending in ("callback", "worker", "interrupt")
    assert len(seen.workers) >= 2
    # At once, and not when garbage happens to be collected.
    assert children() & seen.workers == set()


@pytest.mark.process
def test_L08_an_error_in_a_worker_is_told_in_its_own_words_and_with_its_own_place(folder):
    with pytest.raises(PtrainError) as caught:
        plugin_trainer.fit(
            nn.Linear(4, 2),
            DataLoader(Breaks(16, at=15), batch_size=4, num_workers=2),
            loss="CrossEntropyLoss",
            callbacks=["-progress_bar", "-tensorboard"],
            out=folder / "run",
        )
    assert "ValueError: this sample is broken" in str(caught.value)
    assert "test_events.py:" in str(caught.value)
