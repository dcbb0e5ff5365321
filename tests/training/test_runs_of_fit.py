"""A run of `fit` has no model of its own: Python gives it one, the command line says what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from plugin_trainer import load_run
from plugin_trainer.cli.main import main
from plugin_trainer.errors import CheckpointError, DataError, PtrainError
from plugin_trainer.model_store import Store


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("loss", ["CrossEntropyLoss", nn.CrossEntropyLoss()])
def test_a_model_like_the_one_trained_is_evaluated_as_it_was(fit, toy, tmp_path, weights, loss):
    validation, accuracy = toy.loader(8, seed=1, shuffle=False), {"accuracy": MulticlassAccuracy(2)}
    settings = {"loss": loss, "ema": {"decay": 0.5}, "metrics": accuracy}
    result = fit(None, None, validation, **settings)
    loaded = load_run(
        tmp_path / "run",
        model=nn.Linear(4, 2),
        validation=validation,
        weights=weights,
        checkpoint="last",
        metrics=accuracy,
        loss=None if isinstance(loss, str) else loss,
    )
    prefix = "val_ema/" if weights == "ema" else "val/"
    measured = {name: v for name, v in result.metrics.items() if name.startswith(prefix)}
    assert len(measured) == 2
    assert loaded.evaluate("val") == pytest.approx(measured)
    assert not loaded.model.training
    if weights == "raw":
        assert torch.equal(loaded.model.weight, result.model.weight)


def test_what_was_not_given_is_asked_for_in_python(fit, toy, tmp_path):
    fit()
    with pytest.raises(PtrainError, match=r"is a run of plugin_trainer\.fit") as caught:
        load_run(tmp_path / "run")
    assert f'plugin_trainer.load_run("{tmp_path / "run"}", model=MODEL' in caught.value.hint[0]
    loaded = load_run(tmp_path / "run", model=nn.Linear(4, 2))
    with pytest.raises(DataError, match="no data for the split 'test'") as caught:
        loaded.evaluate("test")
    assert "load_run(..., test=LOADER)" in caught.value.hint[0]
    with pytest.raises(PtrainError, match="has no data module that could predict"):
        list(loaded.predict(["a"]))
    with pytest.raises(CheckpointError, match="do not fit the model Linear"):
        load_run(tmp_path / "run", model=nn.Linear(4, 3))


@pytest.mark.parametrize(
    "command", [["evaluate"], ["predict"], ["calibrate"], ["run", "--resume"]], ids=" ".join
)
def test_the_command_line_says_what_it_is(fit, tmp_path, capsys, monkeypatch, command):
    fit(length="1 steps")
    monkeypatch.setattr("sys.stdin", None)
    assert main([*command, str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "is a run of plugin_trainer.fit: its model and data are in the program" in error
    assert 'resume="auto"' in error


def test_it_is_listed_and_shown(fit, tmp_path, capsys):
    fit(length="1 steps")
    assert main(["runs", "show", str(tmp_path / "run")]) == 0
    assert "given to plugin_trainer.fit" in capsys.readouterr().out


def test_what_cannot_predict_is_registered_with_a_word_and_loaded_with_its_model(
    fit, toy, tmp_path, capsys
):
    fit(length="1 steps", validation=toy.loader(4))
    store = ["--store", str(tmp_path / "models")]
    assert main(["models", "register", str(tmp_path / "run"), "--name", "m", *store]) == 0
    assert "m:1: its model is in the program that called fit" in capsys.readouterr().out
    assert main(["models", "export", "m", str(tmp_path / "served"), *store]) == 0
    told = capsys.readouterr().out
    assert "load it there, with model=MODEL" in told and "ptrain predict" not in told
    loaded = Store(tmp_path / "models").load("m", model=nn.Linear(4, 2))
    assert loaded.model(torch.zeros(1, 4)).shape == (1, 2)
