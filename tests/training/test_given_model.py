"""Models that come wrapped or without shapes are trained, and saved by their own names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import plugin_trainer
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state
from plugin_trainer.training.model.given_model import unwrapped

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


WRAPPED = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data-parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.fixture
def data(toy):
    """Batches with a key that the model does not take."""
    rows = [{"x": x, "labels": y, "number": i} for i, (x, y) in enumerate(toy.rows())]
    return DataLoader(rows, batch_size=4)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_wrapped_model_trains_alike_and_is_saved_by_its_own_names(data, tmp_path, wrap):
    def trained(wrap, folder):
        torch.manual_seed(0)
        model = wrap(Model())
        settings = {"optimizer": {"groups": {"layer.*": {"learning_rate": 1e-2}}}}
        result = plugin_trainer.fit(
            model, data, data, loss=nn.CrossEntropyLoss(), length="3 steps", out=tmp_path / folder,
            ema={"decay": 0.9}, resume="auto", **settings, **QUIET,
        )  # fmt: skip
        assert result.model is model
        return unwrapped(model)[0].layer.weight.detach().clone()

    expected = trained(WRAPPED["plain"], "plain")
    assert torch.equal(trained(wrap, "wrapped"), expected)
    path = CheckpointStore(tmp_path / "wrapped").find("last").path
    for weights in ("raw", "ema"):
        assert set(read_model_state(path, weights=weights)) == {"layer.weight", "layer.bias"}
    # The run has ended: its weights are given back.
    assert torch.equal(trained(wrap, "wrapped"), expected)


def test_a_model_that_is_called_compiled_is_called_so(data, tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(Model(), backend=backend)
    plugin_trainer.fit(
        model, data, loss=nn.CrossEntropyLoss(), length="1 step", out=tmp_path / "r", **QUIET
    )
    assert graphs


def lazy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))


class Interrupts:
    def ptrain_step_end(self, run):
        if run.progress.step == 2:
            run.interrupt("enough", signal=15)


def test_lazy_modules_get_their_shapes_and_resume_exactly(toy, tmp_path):
    def trained(folder, *callbacks):
        return plugin_trainer.fit(
            lazy(), toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="6 steps",
            ema={"decay": 0.9}, out=tmp_path / folder, resume="auto",
            **{**QUIET, "callbacks": [*QUIET["callbacks"], *callbacks]},
        )  # fmt: skip

    whole = trained("whole").model.state_dict()
    assert trained("parts", Interrupts()).step == 2
    resumed = trained("parts").model.state_dict()
    assert whole["0.weight"].shape == (8, 4)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert int(whole["1.num_batches_tracked"]) == 6


def test_what_is_left_of_data_parallel_is_said(toy, tmp_path):
    lines = []
    plugin_trainer.fit(
        nn.DataParallel(toy.net()), toy.loader(), loss="CrossEntropyLoss", length="1 step",
        out=tmp_path / "run", callbacks=QUIET["callbacks"], notify=lines.append,
    )  # fmt: skip
    assert len(lines) == 1 and lines[0].startswith("DataParallel is left out")
