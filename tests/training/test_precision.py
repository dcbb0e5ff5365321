"""What precision the model computes in, and what fp16 needs: scale, unscale, skip, remember."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from plugin_trainer.errors import NonFiniteError, PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot
from plugin_trainer.training.optim.precision import computes_in_bf16, pick_precision

CPU = torch.device("cpu")


class Seen(nn.Module):
    """Remembers the dtype its layer computed in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)
        self.dtypes = set()

    def forward(self, features):
        logits = self.linear(features)
        self.dtypes.add(logits.dtype)
        return logits.float()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_the_forward_pass_computes_in_the_precision_and_the_weights_stay_fp32(fit, name, dtype):
    model = Seen()
    fit(model, precision=name)
    assert model.dtypes == {dtype}
    assert model.linear.weight.dtype == torch.float32
    assert model.linear.weight.isfinite().all()


def test_auto_is_bf16_exactly_where_the_hardware_computes_in_it(fit, tmp_path):
    assert pick_precision("auto", CPU).name == ("bf16" if computes_in_bf16(CPU) else "fp32")
    flags = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert computes_in_bf16(CPU) == flags
    assert not computes_in_bf16(torch.device("meta"))
    assert fit(precision="auto").step == 6


class Overflow:
    """Gradients too large for fp16 at some steps, finite otherwise."""

    def __init__(self, *steps, factor=math.inf, loss=1.0):
        self.steps, self.factor, self.loss = steps, factor, loss
        self.weights, self.rates, self.updates, self.scales = [], [], [], []

    def ptrain_forward(self, run, batch):
        if run.model.training and run.progress.step + 1 in self.steps:
            outcome = run.forward(batch)
            outcome.loss.register_hook(lambda grad: grad * self.factor)
            return StepOutcome(outcome.loss * self.loss)
        return None

    def ptrain_step_end(self, run):
        self.weights.append(run.model.weight.detach().clone())
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        self.updates.append(run.ema.updates)
        self.scales.append(run.scaler.get_scale())


def test_a_step_that_overflows_is_skipped_and_the_scale_is_halved(fit, tmp_path, metrics_of):
    seen = Overflow(2, 4)
    fit(
        precision="fp16",
        callbacks=[seen],
        ema={"decay": 0.9},
        schedule={"name": "linear"},
        log="1 steps",
    )
    for step in (2, 4):
        assert torch.equal(seen.weights[step - 1], seen.weights[step - 2])
        assert seen.rates[step - 1] == seen.rates[step - 2]
        assert seen.updates[step - 1] == seen.updates[step - 2]
        assert seen.scales[step - 1] == seen.scales[step - 2] / 2
    assert not torch.equal(seen.weights[2], seen.weights[1])
    assert seen.updates == [1, 1, 2, 2, 3, 4]
    lines = [line for line in metrics_of(tmp_path / "run") if "train/loss" in line]
    assert [line.get("skipped_steps", 0) for line in lines] == [0, 1, 1, 2, 2, 2]


def test_clipping_and_the_norm_are_those_of_the_unscaled_gradients(fit, tmp_path, metrics_of):
    settings = {"optimizer": {"max_grad_norm": 0.05, "name": "SGD", "learning_rate": 0.1}}
    norms = []
    for name, out in (("fp32", "a"), ("fp16", "b")):
        fit(precision=name, log="1 steps", out=out, **settings)
        norms.append([line["train/grad_norm"] for line in metrics_of(tmp_path / out)[:3]])
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    weights = [
        read_snapshot(CheckpointStore(tmp_path / out).find("last").path).model["weight"]
        for out in ("a", "b")
    ]
    assert torch.allclose(*weights, atol=1e-3)


def test_accumulation_in_fp16_equals_the_big_batch(fit, toy):
    models = []
    for batch, accumulate, out in ((12, 1, "a"), (4, 3, "b")):
        model = toy.net()
        fit(
            model,
            toy.loader(12, batch_size=batch),
            precision="fp16",
            accumulate=accumulate,
            optimizer={"name": "SGD", "learning_rate": 0.1},
            length="4 epochs",
            out=out,
        )
        models.append(model.weight.detach())
    assert torch.allclose(*models, atol=2e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_a_run_in_fp16_too(fit, value):
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is"):
        fit(precision="fp16", ema={"decay": 0.9}, callbacks=[Overflow(3, loss=value)])


def test_gradients_that_no_scale_helps_stop_the_run(fit, toy):
    steps = range(1, 200)
    with pytest.raises(NonFiniteError, match="the gradient norm"):
        fit(
            precision="fp16",
            ema={"decay": 0.9},
            length="200 steps",
            callbacks=[Overflow(*steps)],
        )


def test_R10_the_loss_scale_is_resumed(fit, tmp_path):
    settings = {"precision": "fp16", "ema": {"decay": 0.9}, "save": "1 steps", "keep": "all"}

    class Stop:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                run.interrupt("enough", signal=15)

    fit(callbacks=[Overflow(2, 5)], out="whole", **settings)
    fit(callbacks=[Overflow(2, 5), Stop()], out="cut", **settings)
    fit(callbacks=[Overflow(2, 5)], out="cut", resume="auto", **settings)
    states = [
        read_snapshot(CheckpointStore(tmp_path / out).find("last").path) for out in ("whole", "cut")
    ]
    assert states[0].state["guard"] == states[1].state["guard"]
    assert states[0].state["guard"]["skipped"] == 2
    assert states[0].state["guard"]["scaler"]["scale"] == 65536 / 4
    assert torch.equal(states[0].model["weight"], states[1].model["weight"])


@pytest.mark.parametrize("empty", [0, 1])
def test_a_micro_batch_without_a_label_does_not_spoil_the_others_unit(fit, toy, empty):
    features, labels = toy.rows(8).tensors
    batches = [(features[:4], labels[:4]), (features[4:], labels[4:])]
    batches[empty] = (batches[empty][0], torch.full((4,), -100))

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 4))

        def forward(self, features):
            return features @ self.weight.T

    def loss(logits, labels):  # the mean of none is 0 here, and not NaN
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return total / (labels != -100).sum().clamp(min=1)

    model = Summed()
    fit(
        model, batches, precision="fp16", accumulate=2, loss=loss, length="20 steps",
        optimizer={"name": "SGD", "learning_rate": 0.1},
    )  # fmt: skip
    assert model.weight.isfinite().all() and model.weight.abs().max() > 0.01


def test_a_model_in_half_precision_is_refused_in_fp16(fit, toy):
    with pytest.raises(PtrainError, match="the model has some in float16"):
        fit(toy.net().half(), precision="fp16")
