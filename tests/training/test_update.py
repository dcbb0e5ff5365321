"""The one pass over memory does what torch's operations do one after another, and is used."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from plugin_trainer.errors import TrainingFailed
from plugin_trainer.ops import FusedAdamW, library
from plugin_trainer.settings import OptimizerSettings
from plugin_trainer.training.optim.one_pass import why_not_in_one_pass
from plugin_trainer.training.optim.optimizers import build_optimizer

FULL = {
    "optimizer": {"learning_rate": 0.05, "weight_decay": 0.1, "max_grad_norm": 0.2},
    "schedule": {"name": "linear", "warmup": "2 steps"},
    "ema": {"decay": 0.9},
    "evaluate": "2 steps",
    "log": "1 steps",
}


@pytest.fixture
def kernels():
    if library.find() is None:
        pytest.skip(f"there are no compiled kernels: {library.status().reason}")


class Normalised(nn.Module):
    """Has buffers, of which one is an integer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # A bias before it would have a gradient of rounding alone, which Adam blows up.
        self.first = nn.Linear(4, 8, bias=False)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, features):
        return self.last(self.norm(self.first(features)).relu())


def machine_of(folder):
    return json.loads((folder / "run.json").read_text())["machine"]


def weights_of(folder, which="model"):
    return load_file(folder / f"checkpoints/step-00000006/{which}.safetensors")


# ------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"accumulate": 2, "length": "6 steps"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"ema": None},
        {"optimizer": {"learning_rate": 0.05, "groups": {"first.*": {"learning_rate": 0.01}}}},
    ],
    ids=["plain", "accumulated", "bf16", "fp16", "no average", "groups"],
)
def test_a_run_is_the_same_with_the_kernels_and_without(
    more, fit, toy, metrics_of, tmp_path, monkeypatch, kernels
):
    for way in ("auto", "off"):
        monkeypatch.setenv("PTRAIN_KERNELS", way)
        settings = {key: value for key, value in {**FULL, **more}.items() if value is not None}
        fit(Normalised(), None, toy.loader(seed=1, shuffle=False), out=way, **settings)
    assert machine_of(tmp_path / "auto")["step"] == "fused"
    assert machine_of(tmp_path / "off")["step"] == "torch (PTRAIN_KERNELS=off)"
    averages = ["ema"] if "ema" in {**FULL, **more} and more.get("ema", 1) else []
    for which in ["model", "optimizer", *averages]:
        one, other = weights_of(tmp_path / "auto", which), weights_of(tmp_path / "off", which)
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    for one, other in zip(metrics_of(tmp_path / "auto"), metrics_of(tmp_path / "off"), strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val_ema/loss"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-4), name


def test_integers_and_buffers_are_averaged_beside_the_fused_step(fit, tmp_path, kernels):
    fit(Normalised(), **FULL)
    raw, average = weights_of(tmp_path / "run"), weights_of(tmp_path / "run", "ema")
    assert average["norm.num_batches_tracked"] == raw["norm.num_batches_tracked"] == 6
    assert not torch.equal(average["norm.running_mean"], raw["norm.running_mean"])
    assert not torch.equal(average["first.weight"], raw["first.weight"])


@pytest.mark.parametrize(("first", "then"), [("auto", "off"), ("off", "auto")])
def test_a_run_goes_on_with_the_kernels_or_without(
    first, then, fit, tmp_path, monkeypatch, kernels
):
    lines: list[str] = []
    monkeypatch.setenv("PTRAIN_KERNELS", first)
    fit(Normalised(), **FULL, length="3 steps")
    monkeypatch.setenv("PTRAIN_KERNELS", then)
    options = {**FULL, "length": "6 steps", "allow": ["length"], "resume": "auto"}
    result = fit(Normalised(), notify=lines.append, **options)
    assert result.step == 6
    assert any("weights, their average, optimizer, schedule" in line for line in lines)


def test_a_gradient_that_is_not_finite_changes_nothing(fit, tmp_path, kernels):
    class Breaks:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                run.model.first.weight.register_hook(lambda grad: grad * math.inf)

    with pytest.raises(TrainingFailed) as failed:
        fit(Normalised(), callbacks=[Breaks()], **FULL)
    assert "step 4" in str(failed.value)
    saved = load_file(tmp_path / "run/checkpoints/step-00000003/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_step_made_by_a_plugin_moves_the_weights_and_their_average(fit, tmp_path, kernels):
    """Whoever replaces the whole step calls `optimizer.step` and `ema.update` as before."""

    class Own:
        def ptrain_train_step(self, run, micro_batches):
            run.optimizer.zero_grad()
            outcome = run.hooks.forward(run=run, batch=micro_batches[0])
            outcome.loss.backward()
            run.optimizer.step()
            run.schedule.step()
            run.ema.update()
            return outcome

    model = Normalised()
    before = model.first.weight.detach().clone()
    fit(model, callbacks=[Own()], **FULL)
    average = weights_of(tmp_path / "run", "ema")["first.weight"]
    assert not torch.equal(average, before)
    assert not torch.equal(average, model.first.weight)


def test_hooks_of_the_optimizer_are_called(fit, kernels):
    called = []

    class Watches:
        def ptrain_run_start(self, run):
            run.optimizer.register_step_pre_hook(lambda *_: called.append("before"))
            run.optimizer.register_step_post_hook(lambda *_: called.append("after"))

    fit(callbacks=[Watches()])
    assert called == ["before", "after"] * 6


# ------------------------------------------------------------------------------- when it is used


def test_adamw_is_stepped_in_one_pass(kernels):
    assert isinstance(build_optimizer(nn.Linear(2, 2), OptimizerSettings()), FusedAdamW)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (OptimizerSettings(name="SGD"), "the optimizer is SGD"),
        (OptimizerSettings(settings={"amsgrad": True}), "amsgrad is on"),
        (OptimizerSettings(settings={"maximize": True}), "maximize is on"),
        (OptimizerSettings(settings={"foreach": True}), "foreach is on"),
        (OptimizerSettings(settings={"fused": False}), "fused is off"),
    ],
)
def test_what_forbids_it_is_said(settings, why, kernels):
    optimizer = build_optimizer(nn.Linear(2, 2), settings)
    assert not isinstance(optimizer, FusedAdamW)
    assert why_not_in_one_pass(optimizer) == why


def test_weights_that_it_cannot_take_forbid_it(kernels):
    complex_weights = nn.Linear(2, 2, dtype=torch.complex64)
    optimizer = build_optimizer(complex_weights, OptimizerSettings())
    assert why_not_in_one_pass(optimizer) == "a parameter is torch.complex64"
