"""What changes in a model while it trains comes back, and what could not come back is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import plugin_trainer
from plugin_trainer.errors import CheckpointError, PtrainError
from plugin_trainer.training.checkpointing.store import CheckpointStore, verify

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}


class At:
    """Does something to the run after a step."""

    def __init__(self, step, change):
        self.step, self.change = step, change

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            self.change(run)


INTERRUPT = At(4, lambda run: run.interrupt("enough", signal=15))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def freeze(run):
    run.model[0].requires_grad_(False)


def thaw(run):
    run.model[3].requires_grad_(True)


def evaluate_normalisation(run):
    run.model[1].eval()


@pytest.mark.parametrize("ema", [None, {"decay": 0.5}], ids=["raw", "ema"])
@pytest.mark.parametrize(
    ("change", "optimizer", "frozen"),
    [
        (freeze, "adamw", ()),
        (freeze, "SGD", ()),
        (thaw, "SGD", ("3.weight",)),
        (evaluate_normalisation, "adamw", ()),
    ],
)
def test_what_changes_while_training_comes_back(toy, tmp_path, change, optimizer, frozen, ema):
    def trained(folder, *callbacks):
        model = net()
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        plugin_trainer.fit(
            model, toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="9 steps",
            optimizer=optimizer, schedule="constant", ema=ema, out=tmp_path / folder,
            evaluate="3 steps", resume="auto",
            **{**QUIET, "callbacks": [*QUIET["callbacks"], At(2, change), *callbacks]},
        )  # fmt: skip
        return model.state_dict()

    whole = trained("whole")
    assert not torch.equal(trained("parts", INTERRUPT)["3.bias"], whole["3.bias"])
    resumed = trained("parts")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


class Adapter(nn.Module):
    """A base from elsewhere, whose state is the adapter's alone."""

    def __init__(self, *, trainable=False):
        super().__init__()
        torch.manual_seed(0)
        self.base, self.head = nn.Linear(4, 4).requires_grad_(trainable), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.base(x))

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("base")}


def test_a_partial_state_resumes_where_the_rest_is_frozen(toy, tmp_path):
    def trained(folder, *callbacks):
        model = Adapter()
        plugin_trainer.fit(
            model, toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="6 steps",
            out=tmp_path / folder, resume="auto", ema={"decay": 0.5},
            **{**QUIET, "callbacks": [*QUIET["callbacks"], *callbacks]},
        )  # fmt: skip
        return model.head.weight.detach()

    whole, _, resumed = trained("whole"), trained("parts", INTERRUPT), trained("parts")
    assert torch.equal(whole, resumed)
    assert torch.equal(trained("parts"), resumed)  # of a run that has ended


def test_a_partial_state_of_what_is_trained_is_refused_before_the_first_step(toy, tmp_path):
    model = Adapter(trainable=True)
    before = model.base.weight.detach().clone()
    with pytest.raises(PtrainError, match=r"leaves out 2 trainable parameters, base.weight"):
        plugin_trainer.fit(
            model, toy.loader(), loss=nn.CrossEntropyLoss(), out=tmp_path / "run", **QUIET
        )
    assert torch.equal(model.base.weight, before)


@pytest.mark.parametrize("stray", ["extra.safetensors", "ema/", "optimizer/", "notes.txt", "a/b"])
def test_a_checkpoint_is_what_its_manifest_names(toy, tmp_path, stray):
    plugin_trainer.fit(
        toy.net(), toy.loader(), loss="CrossEntropyLoss", length="2 steps", save="1 step",
        out=tmp_path / "run", **QUIET,
    )  # fmt: skip
    store = CheckpointStore(tmp_path / "run")
    newest = store.find("last").path
    place = newest / stray
    if stray.endswith("/"):
        place.mkdir()
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is not sound: .* is not in its manifest"):
        verify(newest)
    assert store.find("last").step == 1


class Odd(nn.Module):
    """Names with slashes and dots, expanded, scalar and empty buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterDict({"a/b": torch.randn(4, 2), "exp_avg/step": torch.zeros(2)})
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.register_buffer("rows", torch.zeros(1, 2).expand(3, 2))
        self.register_buffer("scalar", torch.tensor(2.0))
        self.register_buffer("empty", torch.zeros(0, 3))

    def forward(self, x):
        if self.training:
            self.scalar += self.expanded.sum()
        return x @ self.weights["a/b"] + self.weights["exp_avg/step"] + self.rows[0]


def test_odd_names_and_buffers_come_back(toy, tmp_path):
    def trained(folder, *callbacks):
        model = Odd()
        plugin_trainer.fit(
            model, toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="6 steps",
            out=tmp_path / folder, resume="auto", ema={"decay": 0.5}, optimizer="adamw",
            **{**QUIET, "callbacks": [*QUIET["callbacks"], *callbacks]},
        )  # fmt: skip
        return model.state_dict()

    whole, _, resumed = trained("whole"), trained("parts", INTERRUPT), trained("parts")
    assert whole["scalar"] == 2 + 6 * 3 and whole["empty"].shape == (0, 3)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
