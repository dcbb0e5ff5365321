"""Schedules whose numbers are meant in epochs step by epochs, or are noticed."""

from __future__ import annotations

import pytest
from torch import nn

import plugin_trainer
from plugin_trainer.errors import PtrainError, SettingsError

QUIET = ("-progress_bar", "-tensorboard")


class Rates:
    """The rate with which each step was made."""

    def __init__(self):
        self.rates, self.now = [], None

    def ptrain_before_optimizer_step(self, run):
        self.rates.append(round(run.optimizer.param_groups[0]["lr"], 6))


class Interrupts:
    def __init__(self, at):
        self.at = at

    def ptrain_step_end(self, run):
        if run.progress.step == self.at:
            run.interrupt("enough", signal=15)


@pytest.fixture
def rates_of(toy, tmp_path):
    """The rates of three epochs of three steps, and what was said at the start."""

    def train(schedule, *callbacks, out="run", length="3 epochs", **schedule_settings):
        seen, lines = Rates(), []
        plugin_trainer.fit(
            toy.net(), toy.loader(), loss=nn.CrossEntropyLoss(), length=length, out=tmp_path / out,
            optimizer={"name": "SGD", "learning_rate": 1.0}, schedule=schedule, resume="auto",
            schedule_settings=schedule_settings, callbacks=[*QUIET, seen, *callbacks],
            notify=lines.append,
        )  # fmt: skip
        return seen.rates, [line for line in lines if line.startswith("schedule.name")]

    return train


STEP = {"name": "StepLR", "every": "1 epoch"}


def test_a_step_of_the_schedule_is_an_epoch(rates_of):
    expected = [1.0] * 3 + [0.1] * 3 + [0.01] * 3
    assert rates_of(STEP, step_size=1) == (expected, [])


def test_it_follows_a_warm_up_and_the_ends_of_epochs(rates_of):
    rates, _ = rates_of({**STEP, "warmup": "1 step"}, step_size=1)
    assert rates == [0.0] + [1.0] * 2 + [0.1] * 3 + [0.01] * 3
    rates, _ = rates_of({**STEP, "every": "2 steps"}, out="steps", step_size=1)
    assert rates == [1.0] * 2 + [0.1] * 2 + [0.01] * 2 + [0.001] * 2 + [0.0001]


def test_a_schedule_over_the_whole_run_has_so_many_steps(rates_of):
    rates, _ = rates_of({"name": "linear", "every": "1 epoch"})
    assert rates == [1.0] * 3 + [0.666667] * 3 + [0.333333] * 3


@pytest.mark.parametrize("at", [2, 3, 4])
def test_it_resumes_where_it_was(rates_of, at):
    whole, _ = rates_of(STEP, out="whole", step_size=1)
    first, _ = rates_of(STEP, Interrupts(at), step_size=1)
    rest, _ = rates_of(STEP, step_size=1)
    assert first + rest == whole


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("StepLR", {"step_size": 1}),
        ("ExponentialLR", {"gamma": 0.05}),
        ("MultiStepLR", {"milestones": [1, 2], "gamma": 0.1}),
        ("CosineAnnealingLR", {"T_max": 2}),
    ],
)
def test_one_that_ends_in_the_first_epoch_is_noticed(rates_of, name, settings):
    _, (line,) = rates_of({"name": name}, **settings)
    assert "falls to 1 % after 2 of the 3 steps of an epoch" in line
    assert rates_of({"name": name, "every": "1 epoch"}, out="every", **settings)[1] == []
    assert rates_of({"name": name}, out="one", length="1 epoch", **settings)[1] == []


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        ("linear", {}), ("cosine", {}), ("constant", {}), ("OneCycleLR", {"max_lr": 1.0}),
        ("StepLR", {"step_size": 3}), ("CosineAnnealingLR", {"T_max": 9}),
    ],
)  # fmt: skip
def test_others_are_not(rates_of, schedule, settings):
    assert rates_of(schedule, **settings)[1] == []


def test_no_length_at_all_is_refused(rates_of):
    with pytest.raises((PtrainError, SettingsError), match=r"schedule\.every"):
        rates_of({**STEP, "every": "0 steps"}, step_size=1)
