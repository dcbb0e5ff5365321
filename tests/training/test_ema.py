"""The average is what a plain loop would give, and lending it to the model never loses the raw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import plugin_trainer
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_weights
from plugin_trainer.training.optim.ema import Ema


def moved(model, times=5, *, seed=0):
    """The model after each of several changes of all it holds."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        with torch.no_grad():
            for tensor in {id(t): t for t in model.state_dict().values()}.values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
                else:
                    tensor.add_(1)
        yield model


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_equals_a_plain_loop(warmup):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = Ema(model, decay=0.9, warmup=warmup)
    expected = {name: t.double().clone() for name, t in model.state_dict().items()}
    for n, _ in enumerate(moved(model)):
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    assert ema.updates == 5
    assert ema.shadow.keys() == expected.keys()
    for name, shadow in ema.shadow.items():
        assert torch.allclose(shadow.double(), expected[name], atol=1e-6), name


def test_counters_among_the_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.9, warmup=False)
    for _ in moved(model, 3):
        ema.update()
    assert ema.shadow["num_batches_tracked"] == 3
    assert ema.shadow["num_batches_tracked"].dtype == torch.int64


def test_half_precision_weights_are_averaged_in_float32():
    model = nn.Linear(2, 2).bfloat16()
    ema = Ema(model, decay=0.999, warmup=False)
    assert {shadow.dtype for shadow in ema.shadow.values()} == {torch.float32}
    start = ema.shadow["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    step = (ema.shadow["weight"] - start).mean()
    assert step == pytest.approx(1e-3, rel=0.02)  # lost in bfloat16, whose digits end at 4e-3
    with ema.applied():
        assert model.weight.dtype == torch.bfloat16


def test_float64_weights_are_averaged_in_float64():
    assert Ema(nn.Linear(2, 2).double(), decay=0.9, warmup=True).shadow["bias"].dtype == (
        torch.float64
    )


def test_frozen_weights_and_what_is_not_saved_are_not_kept_twice():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[1].register_buffer("mask", torch.zeros(2), persistent=False)
    assert set(Ema(model, decay=0.9, warmup=False).shadow) == {"1.weight", "1.bias"}


def test_tied_weights_are_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    ema = Ema(model, decay=0.5, warmup=False)
    assert list(ema.shadow) == ["0.weight"]
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(2)
    ema.update()
    with ema.applied():
        assert torch.allclose(model[1].weight, start + 1)
        assert model[1].weight is model[0].weight


def test_the_model_holds_the_average_inside_and_its_own_weights_afterwards():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, decay=0.5, warmup=False)
    for _ in moved(model, 1):
        ema.update()
    raw = {name: t.clone() for name, t in model.state_dict().items()}
    with ema.applied():
        inside = model.state_dict()
        assert all(torch.equal(inside[name], shadow) for name, shadow in ema.shadow.items())
        assert not torch.equal(inside["0.weight"], raw["0.weight"])
    assert all(torch.equal(t, raw[name]) for name, t in model.state_dict().items())


def test_an_error_inside_gives_the_raw_weights_back():
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.5, warmup=False)
    for _ in moved(model, 1):
        ema.update()
    raw, pointer = model.weight.detach().clone(), model.weight.data_ptr()
    with pytest.raises(ZeroDivisionError), ema.applied():
        1 / 0  # noqa: B018
    assert torch.equal(model.weight, raw) and model.weight.data_ptr() == pointer


def test_a_model_that_counts_its_calls_does_not_change_the_average():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self):
            self.calls += 1

    model = Counter()
    ema = Ema(model, decay=0.5, warmup=False)
    with ema.applied():
        model()
    assert ema.shadow["calls"] == 0 and model.calls == 0


class ForeignNorm(nn.Module):
    """A normalisation of another library, with a bound beside its statistics."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("bound", torch.zeros(2))


@pytest.mark.parametrize(
    ("buffers", "averaged"),
    [
        ("statistics", {"0.running_mean", "0.running_var", "1.running_mean"}),
        ("none", set()),
        ("all", {"0.running_mean", "0.running_var", "1.running_mean", "1.bound", "mask"}),
    ],
)
def test_only_statistics_are_averaged_unless_more_is_asked_for(buffers, averaged):
    model = nn.Sequential(nn.BatchNorm1d(2), ForeignNorm(), nn.utils.spectral_norm(nn.Linear(2, 2)))
    model.register_buffer("mask", torch.tensor([0.0, 1.0]))
    averaged |= {"2.weight_u", "2.weight_v"} if buffers == "all" else set()
    ema = Ema(model, decay=0.5, warmup=False, buffers=buffers)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(2)
    ema.update()
    for name, buffer in model.named_buffers():
        expected = buffer if name not in averaged else before[name] + 1
        torch.testing.assert_close(ema.shadow[name], expected.to(ema.shadow[name].dtype), msg=name)


@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_with_infinities_keeps_the_average_finite(fit, toy, tmp_path, fused):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))

        def forward(self, x):
            h = self.q(torch.stack([x, x], 1))
            return self.out(((h @ h.transpose(1, 2) + self.mask).softmax(-1) @ h).mean(1))

    optimizer = {"name": "adamw" if fused else "sgd"}
    result = fit(
        Masked(), toy.loader(), toy.loader(), ema={"decay": 0.9}, optimizer=optimizer,
        length="4 steps",
    )  # fmt: skip
    assert math.isfinite(result.metrics["val_ema/loss"])
    assert set(result.best) == {"raw", "ema"}


def test_a_metric_that_is_not_finite_is_reported_once(toy, tmp_path):
    class Overflows(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if self.training else torch.inf)

    lines = []
    plugin_trainer.fit(
        Overflows(4, 2), toy.loader(), toy.loader(), loss="CrossEntropyLoss", length="2 steps",
        evaluate="1 step", out=tmp_path / "run", callbacks=["-progress_bar", "-tensorboard"],
        notify=lines.append,
    )  # fmt: skip
    assert lines == ["val/loss is nan at step 1"]


class Assigning(nn.Module):
    """Assigns its buffers anew, as many modules do, in place of changing them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("mean", torch.zeros(2))
        self.inner.register_buffer("calls", torch.tensor(0))
        self.inner.register_buffer("seen", torch.zeros(0))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, value):
        self.inner.mean = 0.5 * self.inner.mean + value
        self.inner.calls = self.inner.calls + 1
        self.inner.seen = torch.cat([self.inner.seen, torch.full((1,), value)])


def test_a_buffer_that_is_assigned_anew_is_averaged_and_lent():
    model = Assigning()
    ema = Ema(model, decay=0.5, warmup=False, buffers="all")
    expected = torch.zeros(2)
    for value in (1.0, 2.0, 4.0):
        model(value)
        ema.update()
        expected = 0.5 * expected + 0.5 * model.inner.mean
    assert torch.equal(ema.shadow["inner.mean"], expected)
    assert ema.shadow["inner.calls"] == 3
    assert torch.equal(ema.shadow["inner.seen"], model.inner.seen)  # of another size each time
    raw = dict(model.named_buffers())
    with ema.applied():
        assert torch.equal(model.inner.mean, expected)
        model(8.0)
    assert all(tensor is raw[name] for name, tensor in model.named_buffers())
    assert model.inner.calls == 3 and torch.equal(ema.shadow["inner.mean"], expected)
    model(8.0)
    ema.begin()
    assert torch.equal(ema.shadow["inner.mean"], model.inner.mean)


def test_the_average_of_an_assigned_buffer_is_what_a_checkpoint_holds(fit, toy, tmp_path):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = toy.net()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, features):
            if self.training:
                self.mean = 0.5 * self.mean + 0.5 * features.mean(0)
            return self.linear(features - self.mean)

    result = fit(Centred(), None, toy.loader(8), ema={"decay": 0.5, "buffers": "all"})
    fresh = Centred().eval()
    last = CheckpointStore(tmp_path / "run").find("last").path
    fresh.load_state_dict(read_weights(last, weights="ema"))
    features, labels = toy.rows(8).tensors
    loss = nn.functional.cross_entropy(fresh(features), labels)
    assert loss.item() == pytest.approx(result.metrics["val_ema/loss"], abs=1e-6)


def test_the_average_comes_back_with_its_counter():
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.9, warmup=True)
    for _ in moved(model, 3):
        ema.update()
    saved = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    other = Ema(nn.Linear(2, 2), decay=0.9, warmup=True)
    other.load_state_dict(saved, **ema.counters())
    assert other.updates == 3
    assert all(torch.equal(other.shadow[name], saved[name]) for name in saved)
