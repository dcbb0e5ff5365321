"""One optimizer step: N02 accumulation equals the big batch, clipping, and N01 what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from plugin_trainer import StepOutcome
from plugin_trainer.errors import NonFiniteError
from plugin_trainer.training.checkpointing.store import read_snapshot
from plugin_trainer.training.step import _as_one

SGD = {"name": "SGD", "learning_rate": 0.5, "weight_decay": 0}


def doubles(toy, count, *, ignored=()):
    """float64 rows, some of whose labels do not count."""
    data = toy.rows(count, dtype=torch.float64)
    features, labels = data.tensors
    labels[list(ignored)] = -100
    return [{"features": row, "labels": label} for row, label in zip(features, labels, strict=True)]


class Classifier(nn.Module):
    """Returns its own loss, a part of it and a metric, all means over the valid rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2).double()

    def forward(self, features, labels):
        logits = self.linear(features)
        loss = functional.cross_entropy(logits, labels)
        return {"loss": loss, "parts": {"task_loss": loss}, "logits": logits}


class Recorder:
    """Keeps the outcome of every step."""

    def __init__(self):
        self.outcomes = []

    def ptrain_step_end(self, run, outcome):
        self.outcomes.append(outcome)


def trained(fit, data, *, batch_size, out, **settings):
    recorder = Recorder()
    model = Classifier()
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    fit(model, loader, out=out, optimizer=SGD, callbacks=[recorder], loss=None, **settings)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), recorder.outcomes


@pytest.mark.parametrize(
    ("count", "ignored"),
    [
        pytest.param(24, (), id="even"),
        pytest.param(21, (), id="short-last-batch-and-window"),
        pytest.param(24, (0, 1, 2, 5, 9, 10, 17), id="unequal-counts-of-valid-labels"),
    ],
)
def test_N02_accumulated_micro_batches_equal_the_big_batch(fit, toy, count, ignored):
    data = doubles(toy, count, ignored=ignored)
    big, wholes = trained(fit, data, batch_size=12, out="big")
    small, parts = trained(fit, data, batch_size=3, accumulate=4, out="small")
    assert torch.allclose(big, small, rtol=0, atol=1e-12)
    for whole, part in zip(wholes, parts, strict=True):
        assert torch.allclose(whole.loss, part.loss, rtol=0, atol=1e-12)
        assert torch.allclose(whole.parts["task_loss"], part.parts["task_loss"])
        assert int(whole.count) == int(part.count)


def test_N02_a_micro_batch_without_a_single_valid_label_weighs_nothing(fit, toy):
    # The mean over no label at all is NaN, in the micro-batch that has none and nowhere else.
    rows = doubles(toy, 6, ignored=(0, 1))
    big, wholes = trained(fit, rows, batch_size=6, out="big", length="1 epoch")
    one_ignored = [rows[0:2], rows[2:4], rows[4:6]]
    model, recorder = Classifier(), Recorder()
    batches = [
        {name: torch.stack([row[name] for row in some]) for name in some[0]} for some in one_ignored
    ]
    fit(
        model, batches, accumulate=3, out="small", length="1 epoch", optimizer=SGD, loss=None,
        callbacks=[recorder],
    )  # fmt: skip
    small = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(big, small, rtol=0, atol=1e-12)
    assert torch.allclose(wholes[0].loss, recorder.outcomes[0].loss, rtol=0, atol=1e-12)


def test_micro_batches_may_report_different_parts():
    def outcome(loss, count, **parts):
        parts = {name: torch.tensor(value) for name, value in parts.items()}
        return StepOutcome(loss=torch.tensor(loss), count=count, parts=parts)

    joined = _as_one([outcome(1.0, 1, a=1.0), outcome(4.0, 2, a=4.0, b=4.0)])
    assert joined.count == 3
    assert joined.loss == 3.0
    assert joined.parts["a"] == 3.0


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_gradients_are_clipped_to_the_norm_and_logged_as_they_were(fit, toy, metrics_of, max_norm):
    model, reference = toy.net(), toy.net()
    train = toy.loader(4, shuffle=False)
    fit(
        model, train, length="1 steps", log="1 steps",
        optimizer={**SGD, "max_grad_norm": max_norm},
    )  # fmt: skip
    features, labels = toy.rows(4).tensors
    functional.cross_entropy(reference(features), labels).backward()
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters()])
    applied = gradient * min(1.0, max_norm / gradient.norm())
    before = torch.cat([p.detach().flatten() for p in reference.parameters()])
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(after, before - 0.5 * applied, atol=1e-6)


def test_the_logged_gradient_norm_is_that_before_clipping(fit, toy, tmp_path, metrics_of):
    for name, limit in (("clipped", 1e-3), ("free", 0)):
        fit(
            out=name, length="1 steps", log="1 steps", train=toy.loader(4),
            optimizer={**SGD, "max_grad_norm": limit},
        )  # fmt: skip
    (clipped,), (free,) = metrics_of(tmp_path / "clipped"), metrics_of(tmp_path / "free")
    assert clipped["train/grad_norm"] == pytest.approx(free["train/grad_norm"])
    assert clipped["train/grad_norm"] > 1e-3


# ---------------------------------------------------------------------------------- N01: not finite


class Fails(nn.Module):
    """Breaks in the forward or in the backward of one step."""

    def __init__(self, at, how):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.at, self.how, self.calls = nn.Linear(4, 2), at, how, 0

    def forward(self, features):
        if self.training:
            self.calls += 1
        logits = self.linear(features)
        if self.calls == self.at and self.training:
            if self.how == "gradient":
                # finite forwards, infinite backwards: the square root at nought
                return logits + torch.sqrt((logits * 0).abs())
            return logits * float(self.how)
        return logits


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("log", ["1 steps", "never"])
def test_N01_a_step_that_is_not_finite_is_named_and_never_applied(
    fit, toy, tmp_path, metrics_of, how, log
):
    good = toy.net()
    constant = {"name": "constant"}
    fit(good, length="3 steps", out="good", optimizer=SGD, schedule=constant)
    model = Fails(4, how)
    with pytest.raises(
        NonFiniteError, match=r"^step 4: the loss is .* and the gradient norm "
    ) as e:
        fit(
            model, optimizer=SGD, schedule=constant, save="1 steps", log=log, ema={"decay": 0.9}
        )  # fmt: skip
    assert torch.equal(model.linear.weight, good.weight)
    run = tmp_path / "run"
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert names[-1] == "step-00000003"
    for path in (run / "checkpoints").glob("step-*"):
        snapshot = read_snapshot(path)
        tensors = [*snapshot.model.values(), *snapshot.ema.values(), *snapshot.optimizer.values()]
        assert all(tensor.isfinite().all() for tensor in tensors)
    last = metrics_of(run)[-1]
    assert last["step"] == 4
    assert {last["train/loss"], last["train/grad_norm"]} & {"nan", "inf"}
    assert "the step was not applied" in e.value.hint[0]
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "failed" and about["reason"].startswith("step 4: the loss is")


def test_N01_the_state_before_the_step_is_saved_where_no_checkpoint_was_due(fit, tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        fit(Fails(4, "nan"), save="never")
    saved = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert saved.is_dir()
    assert caught.value.hint[-1] == f"the run was saved to {saved} before stopping"


def test_N01_buffers_that_a_bad_batch_has_spoilt_are_not_saved(fit, toy, tmp_path):
    # Batch normalisation moves its averages in the forward pass, before anyone can see the loss.
    model = nn.Sequential(nn.BatchNorm1d(4), toy.net())
    features, labels = toy.rows(12).tensors
    batches = [(features[at : at + 4].clone(), labels[at : at + 4]) for at in (0, 4, 8)]
    batches[2][0][0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        fit(model, batches, save="1 steps", length="1 epoch")
    with pytest.raises(NonFiniteError):
        fit(model, batches, save="never", length="1 epoch", out="other")
    for run in ("run", "other"):
        for path in (tmp_path / run / "checkpoints").glob("step-*"):
            assert all(t.isfinite().all() for t in read_snapshot(path).model.values())


def test_a_step_without_a_single_label_says_so_and_not_that_the_loss_is_nan(fit):
    data = TensorDataset(torch.randn(8, 4), torch.full((8,), -100))
    with pytest.raises(NonFiniteError, match="step 1: no item of its batch has a label"):
        fit(train=DataLoader(data, batch_size=4))
