"""A run that starts from the weights of another."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from plugin_trainer.errors import CheckpointError, RunFolderError
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_weights


class Start:
    """Keeps the weights before the first step."""

    def ptrain_run_start(self, run):
        self.weight = run.model.weight.detach().clone()
        self.step = run.progress.step
        self.moments = len(run.optimizer.state)
        self.average = run.ema.shadow["weight"].clone()


@pytest.fixture
def first(fit, toy, tmp_path):
    """A finished run whose best checkpoint is not its last."""
    fit(
        None,
        None,
        toy.loader(8),
        out="first",
        evaluate="1 steps",
        optimizer={"learning_rate": 3.0},
        ema={"decay": 0.5},
        save="1 steps",
        keep="all",
    )
    store = CheckpointStore(tmp_path / "first")
    assert store.find("best").step != store.find("last").step
    return store


@pytest.mark.parametrize(
    ("settings", "which", "weights"),
    [
        ({}, "best", "raw"),
        ({"checkpoint": "last"}, "last", "raw"),
        ({"checkpoint": "step-2"}, "step-2", "raw"),
        ({"weights": "ema"}, "best_ema", "ema"),
        ({"weights": "ema", "checkpoint": "last"}, "last", "ema"),
    ],
)
def test_a_run_starts_from_the_weights_and_nothing_else(
    fit, first, tmp_path, settings, which, weights
):
    start, notices = Start(), []
    run = str(tmp_path / "first")
    fit(
        init_from={"run": run, **settings} if settings else run,
        callbacks=[start],
        ema={"decay": 0.5},
        notify=notices.append,
    )
    found = first.find(which).path
    theirs = read_weights(found, weights=weights)["weight"]
    assert torch.equal(start.weight, theirs)
    assert torch.equal(start.average, theirs)
    assert (start.step, start.moments) == (0, 0)
    assert notices == [f"starting from the {weights} weights of {found}"]


def test_a_resumed_run_goes_on_from_its_own_weights(fit, first, tmp_path):
    settings = {"init_from": str(tmp_path / "first"), "ema": {"decay": 0.5}, "save": "1 steps"}

    class Stop:
        def ptrain_step_end(self, run):
            if run.progress.step == 2:
                run.interrupt("enough", signal=15)

    start = Start()
    whole = fit(out="whole", **settings).model.weight.detach()
    fit(callbacks=[Stop()], **settings)
    shutil.rmtree(tmp_path / "first")  # it is not needed any more
    result = fit(callbacks=[start], resume="auto", **settings)
    assert start.step == 2 and result.step == 6
    assert torch.equal(result.model.weight, whole)


def test_weights_that_do_not_fit_are_named_and_what_fits_can_be_taken(fit, first, tmp_path):
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 4))
            self.bias = nn.Parameter(torch.zeros(3))
            self.more = nn.Parameter(torch.zeros(1))

        def forward(self, features):
            return features @ self.weight.T + self.bias[:2] + self.more

    run = str(tmp_path / "first")
    with pytest.raises(CheckpointError, match=r"init_from: the weights of .* do not fit") as caught:
        fit(Wider(), init_from=run)
    assert caught.value.hint[0].endswith("another shape: bias, more")
    start, notices = Start(), []
    fit(
        Wider(),
        init_from={"run": run, "strict": False},
        callbacks=[start],
        ema={"decay": 0.5},
        notify=notices.append,
        out="other",
    )
    assert torch.equal(start.weight, read_weights(first.find("best").path, weights="raw")["weight"])
    assert notices[0].endswith("; not taken: bias, more")
    with pytest.raises(CheckpointError, match="do not fit the model PReLU"):
        fit(nn.PReLU(), init_from={"run": run, "strict": False}, out="third", loss="MSELoss")


def test_a_run_that_is_not_there_and_weights_that_it_has_not_are_refused(fit, first, tmp_path):
    with pytest.raises(RunFolderError, match="there is no run 'nowhere'"):
        fit(init_from="nowhere", out="a")
    fit(out="raw")
    with pytest.raises(CheckpointError, match="holds no EMA weights"):
        fit(init_from={"run": str(tmp_path / "raw"), "weights": "ema"}, out="b")
