"""Numbers that are not, and numbers that must fit: N01, N03 and N04 of the reliability bar.

More of N01 stands in tests/training/test_step.py and test_guard.py, of N04 in test_schedules.py
beside them; N02 is all in test_step.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from plugin_trainer.errors import NonFiniteError, PtrainError, SettingsError
from plugin_trainer.training import step as engine
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot

BROKEN_STEP = 4
CONSTANT = {"schedule": {"name": "constant"}, "schedule_settings": {}}


class Spoils:
    """Lets the forward pass number `at` in training come to no good."""

    def __init__(self, how: str, at: int) -> None:
        self.how, self.left = how, at

    def ptrain_forward(self, run, batch):
        outcome = engine.ptrain_forward(run, batch)
        self.left -= run.model.training
        if self.left or not run.model.training:
            return outcome
        self.left = -1
        if self.how == "gradient":
            # Adds nothing, and has an infinite slope.
            nothing = (run.model.output.weight.sum() * 0).abs().sqrt()
            return replace(outcome, loss=outcome.loss + nothing)
        return replace(outcome, loss=outcome.loss * float(self.how))


class Keeps:
    """Keeps hold of the model."""

    def ptrain_run_start(self, run) -> None:
        self.model = run.model


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "gradient"])
@pytest.mark.parametrize("log", ["1 steps", "3 steps"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_N01_what_is_not_finite_is_named_shown_and_touches_nothing(
    toy, folder, how, log, accumulate
):
    # With two batches a step it is the second of the fourth step that is spoilt.
    settings = {**CONSTANT, "log": log, "accumulate": accumulate}
    good = toy.train(folder / "good", length="3 steps", **settings).model
    kept = Keeps()
    with pytest.raises(NonFiniteError) as caught:
        callbacks = [Spoils(how, at=BROKEN_STEP * accumulate), kept]
        toy.train(folder / "run", callbacks=callbacks, **settings)
    assert caught.value.step == BROKEN_STEP
    assert caught.value.message.startswith(f"step {BROKEN_STEP}: the loss is ")
    for name, weight in kept.model.named_parameters():
        assert torch.equal(weight, good.get_parameter(name)), name
    store = CheckpointStore(folder / "run")
    assert store.newest_sound()[0].step == BROKEN_STEP - 1
    ours, theirs = (
        read_snapshot(folder / run / "checkpoints" / f"step-{BROKEN_STEP - 1:08d}")
        for run in ("run", "good")
    )
    for which in ("ema", "optimizer"):
        left, right = getattr(ours, which), getattr(theirs, which)
        assert left.keys() == right.keys() and left
        assert all(torch.equal(left[name], right[name]) for name in left), which
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert lines[-1]["step"] == BROKEN_STEP
    shown = [lines[-1]["train/loss"], lines[-1]["train/grad_norm"]]
    assert set(map(str, shown)) & {"nan", "inf", "-inf"}
    earlier = [value for line in lines[:-1] for value in line.values()]
    assert all(math.isfinite(value) for value in earlier)


def test_N01_a_run_that_met_a_nan_goes_on_from_before_it(toy, differences, folder):
    settings = {**CONSTANT, "length": "8 steps"}
    toy.train(folder / "twin", **settings)
    with pytest.raises(NonFiniteError):
        toy.train(folder / "run", callbacks=[Spoils("nan", at=BROKEN_STEP)], **settings)
    toy.train(folder / "run", **settings)
    assert differences(folder / "twin", folder / "run") == []


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf, "1 step"])
def test_N03_a_limit_of_the_gradient_norm_that_is_none_is_refused(toy, folder, limit):
    with pytest.raises(SettingsError) as caught:
        toy.train(folder / "run", optimizer={"max_grad_norm": limit})
    assert [problem.key for problem in caught.value.problems] == ["optimizer.max_grad_norm"]
    assert not (folder / "run").exists()


def rates(run) -> dict[int, float]:
    """The learning rate after each step, that is, of the next."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


RATE = {"optimizer": {"learning_rate": 0.01}, "log": "1 steps", "evaluate": "never"}


def test_N04_without_a_warm_up_the_first_step_has_the_whole_rate(toy, folder):
    schedule = {"name": "linear", "warmup": "0 steps"}
    first = []

    class Looks:
        def ptrain_epoch_start(self, run):
            first.append(run.optimizer.param_groups[0]["lr"])

    toy.train(folder / "run", length="4 steps", schedule=schedule, callbacks=[Looks()], **RATE)
    assert first == [0.01]
    assert rates(folder / "run") == pytest.approx({1: 0.0075, 2: 0.005, 3: 0.0025, 4: 0.0})


@pytest.mark.parametrize("warmup", ["9 steps", "8 steps", "2 epochs", "100 %"])
def test_N04_a_warm_up_as_long_as_the_run_is_refused_before_anything_is_made(toy, folder, warmup):
    with pytest.raises(PtrainError, match="no shorter than the whole run of 8 steps"):
        toy.train(folder / "run", length="8 steps", schedule={"warmup": warmup}, **RATE)


def test_N04_a_run_ends_at_the_smallest_rate_and_not_below(toy, folder):
    schedule = {"schedule": {"name": "cosine", "warmup": "2 steps"}}
    final = {"schedule_settings": {"final_factor": 0.1}}
    toy.train(folder / "run", length="8 steps", **schedule, **final, **RATE)
    found = rates(folder / "run")
    assert min(found[step] for step in range(2, 9)) == found[8] == pytest.approx(0.001)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_N04_a_run_resumed_inside_or_right_after_its_warm_up_goes_on_climbing(toy, folder, stop):
    class Stops:
        def ptrain_checkpoint_committed(self, run):
            if run.progress.step == stop:
                raise KeyboardInterrupt

    schedule = {"name": "linear", "warmup": "3 steps", "start_factor": 0.1}
    settings = {"length": "6 steps", "schedule": schedule, **RATE}
    toy.train(folder / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        toy.train(folder / "run", callbacks=[Stops()], **settings)
    toy.train(folder / "run", **settings)
    assert rates(folder / "run") == rates(folder / "whole")
    assert rates(folder / "run") == pytest.approx(
        {1: 0.004, 2: 0.007, 3: 0.01, 4: 0.02 / 3, 5: 0.01 / 3, 6: 0}
    )
