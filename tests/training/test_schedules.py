"""The learning rate at every step is exactly what the settings say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.schedules import DecaySettings, NoSettings
from plugin_trainer.training.optim.schedules import Schedule, constant, cosine, linear

BASE = 0.2


def rates(make, *, steps, warmup=0, start=0.0):
    """The learning rate that each step is made with."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=BASE)
    schedule = Schedule(
        optimizer, make(optimizer, steps - warmup), warmup_steps=warmup, start_factor=start
    )
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"]


def core(function, settings):
    return lambda optimizer, total: function(optimizer, settings, total)


FACTORS = {
    "linear": (core(linear, DecaySettings()), lambda share: 1 - share),
    "linear to a tenth": (
        core(linear, DecaySettings(final_factor=0.1)),
        lambda share: 1 - 0.9 * share,
    ),
    "cosine": (
        core(cosine, DecaySettings()),
        lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    ),
    "cosine to a half": (
        core(cosine, DecaySettings(final_factor=0.5)),
        lambda share: 0.5 + 0.25 * (1 + math.cos(math.pi * share)),
    ),
    "constant": (core(constant, NoSettings()), lambda share: 1.0),
}


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("name", FACTORS)
def test_every_step_has_the_rate_of_the_formula(name, warmup, start):
    make, factor = FACTORS[name]
    found, after = rates(make, steps=10, warmup=warmup, start=start)
    expected = [BASE * (start + (1 - start) * s / warmup) for s in range(warmup)]
    expected += [BASE * factor((s - warmup) / (10 - warmup)) for s in range(warmup, 10)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert after == pytest.approx(BASE * factor(1.0), abs=1e-15)


def test_any_scheduler_of_torch_may_stand_behind_a_warm_up():
    found, _ = rates(lambda o, total: ExponentialLR(o, 0.5), steps=5, warmup=2)
    assert found == pytest.approx([0, BASE / 2, BASE, BASE / 2, BASE / 4])
    found, _ = rates(lambda o, total: OneCycleLR(o, BASE, total_steps=total + 1), steps=5)
    assert max(found) == pytest.approx(BASE, rel=0.1)


@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_a_schedule_goes_on_where_it_was(at):
    def made():
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=BASE)
        scheduler = cosine(optimizer, DecaySettings(), 7)
        return optimizer, Schedule(optimizer, scheduler, warmup_steps=3, start_factor=0.1)

    def step(optimizer, schedule):
        optimizer.step()
        schedule.step()
        return optimizer.param_groups[0]["lr"]

    whole = made()
    expected = [step(*whole) for _ in range(10)]
    before, after = made(), made()
    for _ in range(at):
        step(*before)
    after[0].load_state_dict(before[0].state_dict())
    after[1].load_state_dict(before[1].state_dict())
    assert [step(*after) for _ in range(10 - at)] == expected[at:]


# ----------------------------------------------------------------------------------------- in a run


def logged(fit, metrics_of, tmp_path, **settings):
    """The rate of the step after each."""
    settings.setdefault("optimizer", {"learning_rate": BASE})
    fit(log="1 steps", **settings)
    return [line["learning_rate"] for line in metrics_of(tmp_path / "run")]


@pytest.mark.parametrize("warmup", ["3 steps", "1 epoch", "50 %"])
def test_a_warm_up_is_given_in_steps_epochs_or_a_share_of_the_run(
    fit, metrics_of, tmp_path, warmup
):
    schedule = {"name": "constant", "warmup": warmup, "start_factor": 0.1}
    found = logged(fit, metrics_of, tmp_path, schedule=schedule)
    assert found == pytest.approx([BASE * f for f in (0.4, 0.7, 1, 1, 1, 1)])


def test_a_run_ends_at_the_final_share_of_its_rate(fit, metrics_of, tmp_path):
    found = logged(
        fit, metrics_of, tmp_path, schedule={"name": "linear"},
        schedule_settings={"final_factor": 0.5},
    )  # fmt: skip
    assert found == pytest.approx([BASE * (1 - 0.5 * s / 6) for s in range(1, 7)])


@pytest.mark.parametrize("warmup", ["6 steps", "7 steps", "2 epochs", "100 %"])
def test_a_warm_up_as_long_as_the_run_is_refused(fit, warmup):
    with pytest.raises(PtrainError, match=r"is no shorter than the whole run of 6 steps") as caught:
        fit(schedule={"warmup": warmup})
    in_steps = "" if warmup.endswith("steps") else " (6 steps)"
    assert caught.value.message.startswith(f"schedule.warmup: {warmup}{in_steps} is no shorter")


# --------------------------------------------------------------------- torch's own, and the plateau

TORCH = "torch.optim.lr_scheduler:"


def test_a_scheduler_of_torch_takes_its_keywords_and_the_length_where_it_asks(
    fit, metrics_of, tmp_path
):
    found = logged(
        fit, metrics_of, tmp_path, schedule={"name": TORCH + "StepLR"},
        schedule_settings={"step_size": 2, "gamma": 0.1},
    )  # fmt: skip
    assert found == pytest.approx([BASE * f for f in (1, 0.1, 0.1, 0.01, 0.01, 0.001)])


def test_one_cycle_knows_how_long_the_run_is(fit, metrics_of, tmp_path):
    found = logged(
        fit, metrics_of, tmp_path, schedule={"name": TORCH + "OneCycleLR"},
        schedule_settings={"max_lr": BASE, "pct_start": 0.5},
    )  # fmt: skip
    assert max(found) == pytest.approx(BASE, rel=0.2)
    assert found[-1] < found[0]


PLATEAU = {
    "schedule": {"name": TORCH + "ReduceLROnPlateau"},
    "schedule_settings": {"factor": 0.5, "patience": 0},
    "evaluate": "1 steps",
}


class Scores:
    """Makes up what evaluations find."""

    def __init__(self, *losses, name="val/loss"):
        self.losses, self.name = list(losses), name

    def ptrain_evaluation_end(self, run, metrics):
        metrics[self.name] = self.losses[run.progress.step - 1]


def test_a_plateau_schedule_steps_on_evaluations(fit, toy, metrics_of, tmp_path):
    fit_with = dict(PLATEAU, validation=toy.loader(4), callbacks=[Scores(5, 4, 4, 3, 3, 3)])
    found = logged(fit, metrics_of, tmp_path, **fit_with)
    # The line of a step is written before its evaluation moves the rate.
    assert found == pytest.approx([BASE * f for f in (1, 1, 1, 0.5, 0.5, 0.25)])


def test_a_plateau_schedule_waits_for_its_warm_up_and_watches_what_it_is_told(
    fit, toy, metrics_of, tmp_path
):
    found = logged(
        fit, metrics_of, tmp_path, **{
            **PLATEAU,
            "schedule": {**PLATEAU["schedule"], "warmup": "2 steps", "watch": "val/score"},
            "schedule_settings": {**PLATEAU["schedule_settings"], "mode": "max"},
            "validation": toy.loader(4),
            "callbacks": [Scores(1, 1, 1, 2, 2, 2, name="val/score")],
        },
    )  # fmt: skip
    assert found == pytest.approx([BASE * f for f in (0.5, 1, 1, 0.5, 0.5, 0.25)])


def test_a_plateau_schedule_follows_the_mode_of_the_best(fit, toy, metrics_of, tmp_path):
    found = logged(
        fit, metrics_of, tmp_path, **PLATEAU, best={"watch": "val/score", "mode": "max"},
        validation=toy.loader(4), callbacks=[Scores(1, 2, 3, 3, 4, 5, name="val/score")],
    )  # fmt: skip
    assert found == pytest.approx([BASE * f for f in (1, 1, 1, 1, 0.5, 0.5)])


def test_a_plateau_schedule_without_evaluations_or_with_an_unknown_metric_is_refused(fit, toy):
    with pytest.raises(PtrainError, match="ReduceLROnPlateau goes by evaluations"):
        fit(**PLATEAU)
    with pytest.raises(PtrainError, match=r"goes by a metric, and best\.watch is empty"):
        fit(**PLATEAU, validation=toy.loader(4), out="nothing", best={"watch": ""})
    with pytest.raises(PtrainError, match="val/los") as caught:
        fit(
            validation=toy.loader(4),
            out="other",
            **{**PLATEAU, "schedule": {**PLATEAU["schedule"], "watch": "val/los"}},
        )
    assert "val/loss" in str(caught.value)


def test_R10_a_plateau_schedule_is_resumed(fit, toy, metrics_of, tmp_path):
    losses = (5, 4, 4, 4, 4, 4)
    settings = {
        **PLATEAU,
        "schedule_settings": {"factor": 0.5, "patience": 1},
        "optimizer": {"learning_rate": BASE},
        "save": "1 steps",
        "log": "1 steps",
        "validation": toy.loader(4),
    }

    class Stop:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                run.interrupt("enough", signal=15)

    fit(callbacks=[Scores(*losses)], out="whole", **settings)
    fit(callbacks=[Scores(*losses), Stop()], out="cut", **settings)
    fit(callbacks=[Scores(*losses)], out="cut", resume="auto", **settings)
    whole, cut = (
        {line["step"]: line["learning_rate"] for line in metrics_of(tmp_path / out)}
        for out in ("whole", "cut")
    )
    assert whole == cut and len(set(whole.values())) > 1


def test_one_cycle_gives_each_group_its_share_of_the_rate(fit, metrics_of, tmp_path):
    groups = {"bias": {"learning_rate": BASE / 4}}
    fit(
        log="1 steps", optimizer={"learning_rate": BASE, "groups": groups},
        schedule={"name": TORCH + "OneCycleLR"}, schedule_settings={"max_lr": 2 * BASE},
    )  # fmt: skip
    for line in metrics_of(tmp_path / "run"):
        if "train/loss" in line:
            assert line["learning_rate/bias"] == pytest.approx(line["learning_rate/others"] / 4)
