"""The test split is scored once, at the end, with the best weights of each set."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from plugin_trainer.configuration import configure
from plugin_trainer.settings.layers import Layer
from plugin_trainer.training.checkpointing.store import read_weights
from plugin_trainer.training.execution import execute
from plugin_trainer.training.setup.assemble import assemble


class WithTest:
    """Data with all three splits; the validation labels turn round, so that the best is early."""

    def __init__(self, toy):
        self.toy = toy

    def train(self):
        return self.toy.loader()

    def validation(self):
        features, labels = self.toy.rows(8, seed=1).tensors
        return DataLoader(torch.utils.data.TensorDataset(features, 1 - labels), batch_size=8)

    def test(self):
        return self.toy.loader(8, seed=2, shuffle=False)


@pytest.fixture
def run(toy, tmp_path):
    return assembled(toy, tmp_path)


def assembled(toy, tmp_path, *callbacks):
    values = {
        "length": "3 epochs",
        "evaluate": "1 steps",
        "callbacks": [*toy.quiet, "early_stopping"],
        "callback_settings": {"early_stopping": {"patience": 100}},
        "optimizer": {"learning_rate": 0.1},
        "ema": {"decay": 0.5, "warmup": False},
    }
    return assemble(
        configure(Layer("test", values), parts=False),
        out=tmp_path / "run",
        model=toy.net(),
        data=WithTest(toy),
        criterion=nn.functional.cross_entropy,
        callbacks=callbacks,
    )


def test_it_is_scored_with_the_best_weights_and_the_last_ones_stay_in_the_model(run, toy):
    result = execute(run)
    best = result.best["raw"]
    assert best.step < result.step
    last = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    features, labels = toy.rows(8, seed=2).tensors
    for weights, prefix in (("raw", "test"), ("ema", "test_ema")):
        checkpoint = run.store.path_of(result.best[weights].step)
        model = nn.Linear(4, 2)
        model.load_state_dict(read_weights(checkpoint, weights=weights))
        expected = nn.functional.cross_entropy(model(features), labels).item()
        assert result.metrics[f"{prefix}/loss"] == pytest.approx(expected, abs=1e-6)
    newest = read_weights(run.store.path_of(result.step), weights="raw")
    assert all(torch.equal(last[name], newest[name]) for name in last)


def test_it_is_written_down_once(run):
    folder = execute(run).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test/loss" in line] == [9]
    assert "test/loss" in json.loads((folder / "run.json").read_text())["metrics"]


def test_a_run_that_is_interrupted_does_not_look_at_it(toy, tmp_path):
    class Interrupted:
        def ptrain_step_end(self, run):
            run.interrupt("it was enough", signal=15)

    result = execute(assembled(toy, tmp_path, Interrupted()))
    assert result.status == "interrupted"
    assert not any(name.startswith("test") for name in result.metrics)


def test_a_run_that_is_never_to_score_it_does_not_ask_for_it(fit, toy):
    class NeverIterated:
        def __iter__(self):
            raise AssertionError

    result = fit(None, None, toy.loader(8), test=NeverIterated(), test_split="never")
    assert not any(name.startswith("test") for name in result.metrics)


def test_fit_takes_a_test_split_too(fit, toy):
    result = fit(None, None, toy.loader(8), test=toy.loader(8, seed=3))
    assert {"val/loss", "test/loss"} <= result.metrics.keys()
