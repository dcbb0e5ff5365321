"""The library in ten lines: plain modules, plain data, and everything a run file gives."""

from __future__ import annotations

import gc
import random
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

import plugin_trainer
from plugin_trainer.errors import PtrainError, SettingsError, TrainingFailed
from plugin_trainer.training.seeding import capture_rng, own_rng, restore_rng
from tests import forkserver


def test_a_plain_module_learns_from_a_plain_loader_in_ten_lines(toy, tmp_path):
    result = plugin_trainer.fit(
        toy.net(),
        toy.loader(64, batch_size=8),
        toy.loader(64, seed=1),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(num_classes=2)},
        length="5 epochs",
        optimizer={"learning_rate": 0.1},
        callbacks=["-progress_bar"],
        out=tmp_path / "run",
    )
    assert result.metrics["val/accuracy"] > 0.85
    assert result.step == 40 and result.samples == 320
    assert result.folder == tmp_path / "run"


def test_it_makes_the_same_steps_as_a_loop_written_by_hand(fit, toy):
    model, mine = toy.net(), toy.net()
    batches = [*toy.loader(12, shuffle=False)]
    fit(model, batches, optimizer={"name": "SGD", "learning_rate": 0.1, "weight_decay": 0})
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    for step, (features, labels) in enumerate(batches * 2):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 6)
        optimizer.zero_grad()
        functional.cross_entropy(mine(features), labels).backward()
        optimizer.step()
    assert torch.allclose(model.weight, mine.weight, atol=1e-7)


@pytest.mark.parametrize("kind", ["data set", "loader", "batches"])
def test_the_data_may_be_a_data_set_a_loader_or_batches(fit, toy, kind):
    train = {"data set": toy.rows(12), "loader": toy.loader(12), "batches": [*toy.loader(12)]}[kind]
    result = fit(train=train, validation=train, batch_size=4)
    assert result.step == 6 and "val/loss" in result.metrics


def test_a_model_with_a_loss_of_its_own_needs_no_other(fit, toy):
    class Model(nn.Linear):
        def forward(self, features, labels):
            logits = super().forward(features)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    assert fit(Model(4, 2), loss=None).status == "finished"


def test_a_loss_can_be_given_by_its_name(fit, toy):
    by_name = fit(loss="CrossEntropyLoss", out="named").model
    assert torch.equal(by_name.weight, fit(loss=nn.CrossEntropyLoss()).model.weight)


def test_a_model_without_any_loss_says_what_to_do(fit):
    with pytest.raises(PtrainError, match="the model returned no loss, only: logits") as caught:
        fit(loss=None, train=[{"input": torch.zeros(2, 4), "labels": torch.zeros(2).long()}])
    assert any("fit(..., loss=" in line for line in caught.value.hint)


def test_an_error_of_the_model_is_named_with_its_place(fit):
    class Broken(nn.Linear):
        def forward(self, features):
            raise ZeroDivisionError("in the model")

    with pytest.raises(TrainingFailed, match="the run failed after step 0") as caught:
        fit(Broken(4, 2))
    assert caught.value.hint[0] == "ZeroDivisionError: in the model"
    assert "test_fit.py:" in caught.value.hint[1]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_every_mistake_in_the_settings_is_reported_at_once(fit):
    with pytest.raises(SettingsError) as caught:
        fit(lenght="3 epochs", optimizer={"lr": 1}, seed="x", callbacks=["early_stoping"])
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == 4
    assert "fit: lenght: no such key; did you mean 'length'?" in found


def test_an_unknown_device_is_refused(fit):
    with pytest.raises(PtrainError, match="device: 'gpu9' cannot be used"):
        fit(device="gpu9")


def test_bfloat16_autocast_keeps_the_weights_in_float32(fit):
    seen = []

    class Watch:
        def ptrain_step_end(self, outcome):
            seen.append(outcome.outputs["logits"].dtype)

    result = fit(precision="bf16", callbacks=[Watch()], length="1 steps")
    assert seen == [torch.bfloat16]
    assert result.model.weight.dtype == torch.float32


def test_the_same_seed_gives_the_same_run_and_another_another(fit, toy):
    def trained(out, seed):
        model = nn.Sequential(toy.net(), nn.Dropout(0.5))
        fit(model, out=out, seed=seed)
        return model[0].weight

    assert torch.equal(trained("a", 1), trained("b", 1))
    assert not torch.equal(trained("c", 1), trained("d", 2))


def test_a_run_can_be_freed(fit):
    held = []

    class Keep:
        def ptrain_run_start(self, run):
            held.append(weakref.ref(run))

    fit(callbacks=[Keep()])
    gc.collect()
    assert held[0]() is None


# ----------------------------------------------------------------------------------- random streams


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_state_of_every_stream_is_captured_and_put_back():
    random.gauss(0, 1)
    np.random.randn()  # leaves half of a pair behind, which is state too
    state = capture_rng()
    first = (*draws(), random.gauss(0, 1), np.random.randn())
    restore_rng(state)
    assert (*draws(), random.gauss(0, 1), np.random.randn()) == first


def test_streams_of_ones_own_depend_on_the_seed_and_the_name_and_move_no_other():
    state = capture_rng()
    found = []
    for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b")):
        with own_rng(seed, name):
            found.append(draws())
    assert found[0] == found[1] and len(set(found)) == 3
    assert capture_rng() == state
    with pytest.raises(ZeroDivisionError), own_rng(0):
        draws()
        1 / 0  # noqa: B018
    assert capture_rng() == state


@pytest.mark.process
def test_a_model_that_was_typed_in_can_be_trained(tmp_path):
    code = """
import torch, plugin_trainer
from torch import nn
class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, features):
        return self.layer(features)
data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
print(plugin_trainer.fit(Typed(), data, loss="CrossEntropyLoss", length="2 steps", out="run").step)
"""
    done = forkserver.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().endswith("2"), done.stderr
