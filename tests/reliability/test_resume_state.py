"""What a run remembers beside its weights is resumed: R09 and R10 of the reliability bar.

Each part is also dropped from a checkpoint, and then the run must differ: a test that would not
notice proves nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch

from plugin_trainer import hookimpl
from plugin_trainer.errors import PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot

TOTAL = 12


class Stop:
    """Interrupts the run at one of its steps, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            run.interrupt("enough", signal=15)


class Scores:
    """Makes up what the evaluation of each step finds, for raw and average weights."""

    def __init__(self, *, raw=(), ema=()) -> None:
        self.raw, self.ema = raw, ema

    @hookimpl(tryfirst=True)
    def ptrain_evaluation_end(self, run, metrics):
        for name, values in (("val/loss", self.raw), ("val_ema/loss", self.ema)):
            if values:
                metrics[name] = float(values[run.progress.step - 1])


def snapshot_of(run: Path, *, step: int | None = None):
    store = CheckpointStore(run)
    return read_snapshot(store.find("last" if step is None else f"step-{step}").path)


def drop(run: Path, change) -> None:
    """Change the state of the newest checkpoint, which stays a sound one."""
    store = CheckpointStore(run)
    found = store.find("last")
    snapshot = read_snapshot(found.path)
    change(snapshot.state)
    store.save(snapshot, step=found.step)


def pointer(run: Path, name: str) -> dict:
    return json.loads((run / "checkpoints" / f"{name}.json").read_text())


# --------------------------------------------------------------------------------- R09: the average


@pytest.fixture(scope="module")
def whole(toy, memory):
    """A run of twelve steps that was never interrupted, with all its checkpoints."""
    folder = memory / "whole-of-the-average" / "run"
    toy.train(folder, length="12 steps")
    return folder


class Fails:
    """Raises in an evaluation of the average weights, and notes the weights there."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.there: torch.Tensor | None = None

    def ptrain_evaluation_batch_end(self, run, weights):
        if weights == "ema" and run.progress.step == self.step:
            self.there = run.model.output.weight.detach().clone()
            raise ValueError("broken")


class Captured:
    """Notes the model of the run."""

    def ptrain_run_start(self, run):
        self.model = run.model


def test_R09_an_error_while_the_average_is_in_the_model_leaves_raw_weights_everywhere(
    toy, whole, folder
):
    run, fails, captured = folder / "run", Fails(6), Captured()
    with pytest.raises(PtrainError, match="Fails"):
        toy.train(run, length="12 steps", save="never", callbacks=[fails, captured])
    expected = snapshot_of(whole, step=6)
    saved = snapshot_of(run)
    assert torch.equal(fails.there, expected.ema["output.weight"])
    assert not torch.equal(fails.there, expected.model["output.weight"])
    for tensors in (saved.model, captured.model.state_dict()):
        assert all(torch.equal(tensors[name], expected.model[name]) for name in expected.model)
    assert all(torch.equal(saved.ema[name], expected.ema[name]) for name in expected.ema)
    # The evaluation is lost, and nothing else.
    toy.train(run, length="12 steps", save="never")
    last, wanted = snapshot_of(run), snapshot_of(whole)
    assert all(torch.equal(last.model[name], wanted.model[name]) for name in wanted.model)
    assert all(torch.equal(last.ema[name], wanted.ema[name]) for name in wanted.ema)


@pytest.mark.process
def test_R09_a_kill_while_the_average_is_in_the_model_leaves_raw_weights_on_disk(
    toy_process, toy, differences, folder
):
    run = folder / "run"
    assert toy_process(run, "--kill", "evaluating_ema:6") == -signal.SIGKILL
    toy.train(folder / "whole")
    expected, saved = snapshot_of(folder / "whole", step=5), snapshot_of(run)
    assert saved.state["progress"]["step"] == 5
    assert all(torch.equal(saved.model[name], expected.model[name]) for name in expected.model)
    assert not torch.equal(saved.model["output.weight"], saved.ema["output.weight"])
    assert toy_process(run) == 0
    assert differences(folder / "whole", run) == []


class Counts:
    """Notes the counter of the average after each step."""

    def __init__(self) -> None:
        self.updates: dict[int, int] = {}

    def ptrain_step_end(self, run):
        self.updates[run.progress.step] = run.ema.updates


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_R09_the_counter_and_the_warm_up_of_the_average_go_on(toy, whole, folder, stop):
    run, counts = folder / "run", Counts()
    toy.train(run, length="12 steps", callbacks=[counts, Stop(stop)])
    counts.updates.clear()
    toy.train(run, length="12 steps", callbacks=[counts])
    assert counts.updates == {step: step for step in range(stop + 1, TOTAL + 1)}
    # By hand, over the weights of every step: min(decay, (1 + n) / (10 + n)) is the share kept.
    weights = {n: snapshot_of(run, step=n) for n in range(1, TOTAL + 1)}
    shadow = weights[stop].ema["output.weight"].double()
    for updates in range(stop, TOTAL):
        kept = min(0.9, (1 + updates) / (10 + updates))
        weight = weights[updates + 1].model["output.weight"].double()
        shadow = kept * shadow + (1 - kept) * weight
    assert torch.allclose(weights[TOTAL].ema["output.weight"].double(), shadow, atol=1e-6)


LATER_IS_WORSE = [9, 9, 2, 9, 9, 5, 9, 9, 4, 9, 9, 3]


@pytest.mark.parametrize("pointed", ["best", "best_ema"])
def test_R09_the_best_of_each_weight_set_is_still_the_best_after_a_resume(
    toy, differences, folder, pointed
):
    which = "ema" if pointed == "best_ema" else "raw"
    scores = Scores(**{which: LATER_IS_WORSE})
    toy.train(folder / "whole", length="12 steps", callbacks=[scores], keep=1)
    toy.train(folder / "run", length="12 steps", callbacks=[scores, Stop(4)], keep=1)
    shutil.copytree(folder / "run", folder / "forgot")
    result = toy.train(folder / "run", length="12 steps", callbacks=[scores], keep=1)
    assert differences(folder / "whole", folder / "run") == []
    assert pointer(folder / "run", pointed)["step"] == result.best[which].step == 3
    assert result.best[which].value == 2
    assert (folder / "run" / "checkpoints" / "step-00000003").is_dir()

    drop(folder / "forgot", lambda state: state["best"].pop(pointed))
    toy.train(folder / "forgot", length="12 steps", callbacks=[scores], keep=1)
    assert pointer(folder / "forgot", pointed)["step"] == 12


# --------------------------------------------------------------------------- R10: what has counted


class Overflow:
    """Gradients too large for fp16 at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def ptrain_forward(self, run, batch):
        if run.model.training and run.progress.step + 1 in self.steps:
            outcome = run.forward(batch)
            outcome.loss.register_hook(lambda gradient: gradient * math.inf)
            return StepOutcome(outcome.loss)
        return None


def _no_early_stopping(state):
    del state["callbacks"]["early_stopping/val/loss"]


def _no_count(state):
    state["callbacks"]["early_stopping/val/loss"]["without_improvement"] = 0


def _no_best(state):
    state["callbacks"]["early_stopping/val/loss"]["best"] = None


def _no_bad_evaluations(state):
    state["schedule"]["scheduler"]["num_bad_epochs"] = 0


def _no_best_of_the_plateau(state):
    state["schedule"]["scheduler"]["best"] = math.inf


def _no_steps_of_the_warm_up(state):
    state["schedule"]["steps"] = 0


def _no_place_of_the_scheduler(state):
    state["schedule"]["scheduler"]["last_epoch"] = 0


def _no_loss_scale(state):
    state["guard"] = {}


def _no_growth_of_the_loss_scale(state):
    state["guard"]["scaler"]["_growth_tracker"] = 0


# An evaluation at each step; the run is interrupted after the fourth.
EARLY = {
    "callback_settings": {"early_stopping": {"patience": 3}},
    "callbacks": [Scores(raw=[5, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4])],
    "stopped_at": 5,
}
PLATEAU = {
    "schedule": {"name": "ReduceLROnPlateau"},
    "schedule_settings": {"factor": 0.5, "patience": 2},
    "callbacks": [Scores(raw=[5, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4])],
}
WARM_UP = {"schedule": {"name": "cosine", "warmup": "8 steps"}}
BEHIND = {"schedule": {"name": "cosine", "warmup": "2 steps"}}
FP16 = {"precision": "fp16", "callbacks": [Overflow(2)]}

MEMORIES = {
    "early-stopping": (EARLY, [_no_early_stopping, _no_count, _no_best]),
    "plateau": (PLATEAU, [_no_bad_evaluations, _no_best_of_the_plateau]),
    "warm-up": (WARM_UP, [_no_steps_of_the_warm_up]),
    "schedule": (BEHIND, [_no_place_of_the_scheduler]),
    "loss-scale": (FP16, [_no_loss_scale, _no_growth_of_the_loss_scale]),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_R10_what_has_counted_goes_on_counting_and_would_be_missed(toy, differences, folder, name):
    settings, drops = MEMORIES[name]
    settings = {"length": "12 steps", "evaluate": "1 steps", "save": "never", **settings}
    stopped_at = settings.pop("stopped_at", TOTAL)
    callbacks = settings.pop("callbacks", [])

    assert toy.train(folder / "whole", callbacks=callbacks, **settings).step == stopped_at
    toy.train(folder / "cut", callbacks=[*callbacks, Stop(4)], **settings)
    assert snapshot_of(folder / "cut").state["progress"]["step"] == 4
    shutil.copytree(folder / "cut", folder / "run")
    toy.train(folder / "run", callbacks=callbacks, **settings)
    assert differences(folder / "whole", folder / "run") == []

    for change in drops:
        lost = folder / change.__name__
        shutil.copytree(folder / "cut", lost)
        drop(lost, change)
        toy.train(lost, callbacks=callbacks, **settings)
        assert differences(folder / "whole", lost) != [], change.__name__
