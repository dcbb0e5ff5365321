"""The learning rate at every step is exactly what the settings say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.schedules import DecaySettings, NoSettings
from plugin_trainer.training.schedules import Schedule, constant, cosine, linear

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
