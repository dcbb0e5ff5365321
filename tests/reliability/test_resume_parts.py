"""Every part of the engine and of torch resumes exactly: R14 of the reliability bar."""

from __future__ import annotations

import pytest
import torch

from plugin_trainer.callbacks.hooks import ptrain_callbacks, ptrain_schedulers
from plugin_trainer.configuration import torch_schedules
from plugin_trainer.errors import PtrainError, SettingsError

STOP = 4  # in the middle of an epoch
LENGTH = "8 steps"


class Stop:
    """Interrupts the run once, as a signal would."""

    def __init__(self, step: int = STOP) -> None:
        self.step = step

    def ptrain_step_end(self, run) -> None:
        if run.progress.step == self.step:
            run.interrupt("enough", signal=15)


def assert_resumes_exactly(toy, differences, folder, *, callbacks=(), stop=STOP, **settings):
    """A run that is interrupted in the middle of an epoch and goes on equals one that is not."""
    settings = {"length": LENGTH, "save": "never", "evaluate": "never", **settings}
    whole = toy.train(folder / "whole", callbacks=callbacks, **settings)
    assert whole.status == "finished"
    cut = toy.train(folder / "run", callbacks=[*callbacks, Stop(stop)], **settings)
    assert cut.status == "interrupted" and cut.step == stop
    assert toy.train(folder / "run", callbacks=callbacks, **settings).status == "finished"
    assert differences(folder / "whole", folder / "run") == []


# -------------------------------------------------------------------------------------- optimizers

OPTIMIZERS = {
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "ASGD": {"t0": 3},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}

# What one step over the gradients of a model cannot use, and what is said of it. LBFGS calls the
# model several times in a step; Muon takes matrices alone; SparseAdam takes sparse gradients alone,
# which no module gives unless it is asked to.
UNUSABLE = {
    "LBFGS": "optimizer.name: LBFGS computes the loss several times in a step",
    "Muon": "Muon refuses its settings: Muon only supports 2D parameters",
    "SparseAdam": "SparseAdam does not support dense gradients",
}


def test_R14_every_optimizer_of_torch_is_in_one_of_the_lists():
    of_torch = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    assert of_torch - {"Optimizer"} == OPTIMIZERS.keys() | UNUSABLE.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_R14_a_run_with_any_optimizer_resumes_exactly(toy, differences, folder, name):
    optimizer = {
        "name": name,
        "learning_rate": 1e-2,
        "max_grad_norm": 1.0,
        "settings": OPTIMIZERS[name],
    }
    assert_resumes_exactly(toy, differences, folder, optimizer=optimizer)


@pytest.mark.parametrize("name", UNUSABLE)
def test_R14_an_optimizer_that_cannot_be_used_is_refused_in_words(toy, folder, name):
    with pytest.raises(PtrainError) as caught:
        toy.train(folder / "run", length=LENGTH, optimizer={"name": name})
    assert UNUSABLE[name] in "\n".join((caught.value.message, *caught.value.hint))
    assert not [*folder.glob("run/checkpoints/step-*")]


# --------------------------------------------------------------------------------------- schedules

SCHEDULES = {
    "linear": {"final_factor": 0.1},
    "cosine": {},
    "constant": {},
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 3, 5], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 4},
    "LinearLR": {"start_factor": 0.2, "total_iters": 5},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 5, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 2, "mode": "exp_range"},
    "OneCycleLR": {"max_lr": 1e-2},
    "ReduceLROnPlateau": {"factor": 0.5, "patience": 0},
}

# What settings cannot say: a function, or other schedules.
NOT_FROM_SETTINGS = ("ChainedScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR")


def test_R14_every_schedule_is_in_one_of_the_lists():
    of_core = {spec.name for spec in ptrain_schedulers()}
    assert of_core | set(torch_schedules()) == SCHEDULES.keys() | set(NOT_FROM_SETTINGS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_R14_a_run_with_any_schedule_resumes_exactly(toy, differences, folder, name):
    assert_resumes_exactly(
        toy,
        differences,
        folder,
        schedule={"name": name, "warmup": "2 steps"},
        schedule_settings=SCHEDULES[name],
        evaluate="2 steps" if name == "ReduceLROnPlateau" else "never",
        log="1 steps",
    )


@pytest.mark.parametrize("name", NOT_FROM_SETTINGS)
def test_R14_a_schedule_that_settings_cannot_make_is_refused_by_what_it_lacks(toy, folder, name):
    with pytest.raises(SettingsError) as caught:
        toy.train(folder / "run", length=LENGTH, schedule={"name": name})
    assert all(name in line and "it is required" in line for line in caught.value.hint)
    assert not (folder / "run" / "run.toml").exists()


# --------------------------------------------------------------------------------------- callbacks

CALLBACKS = {
    "progress_bar": {"mode": "lines"},
    "learning_rate_monitor": {},
    "tensorboard": {},
    "early_stopping": {"patience": 1000},
    # Its window is open when the run is interrupted.
    "profiler": {"skip_first": 1, "wait": 0, "warmup": 1, "active": 4},
}


def test_R14_every_callback_is_in_the_list():
    # tests/model_store/test_register_best.py, plugins/dactbert/tests/test_early_exit.py
    elsewhere = {"register_best", "early_exit"}
    assert {spec.name for spec in ptrain_callbacks()} == CALLBACKS.keys() | elsewhere


@pytest.mark.parametrize("name", CALLBACKS)
def test_R14_a_run_with_any_callback_resumes_exactly(toy, differences, folder, name):
    names = dict.fromkeys(["-progress_bar", "-tensorboard", "-learning_rate_monitor"])
    names.pop(f"-{name}", None)
    tables = {name: CALLBACKS[name]} if CALLBACKS[name] else {}
    assert_resumes_exactly(
        toy,
        differences,
        folder,
        callbacks=[*names, name],
        callback_settings={"early_stopping": {"patience": 1000}, **tables},
        evaluate="2 steps",
    )
