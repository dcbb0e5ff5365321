"""Arguments of `fit` and `load_run` of another kind are answered before anything is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import plugin_trainer
from plugin_trainer.errors import DataError, PtrainError

QUIET = ["-progress_bar", "-tensorboard"]


class Hears:
    def __init__(self, heard, name):
        self.heard, self.name = heard, name

    def ptrain_run_start(self, run):
        self.heard.append(self.name)


class WithoutHook:
    def on_epoch_end(self):
        pass


SLIPS = {
    "data": ({"data": "waves/series"}, "data: fit is given the model and the data themselves"),
    "data settings": ({"data_settings": {"rows": 3}}, "data_settings: fit is given"),
    "model settings": ({"model_settings": {"width": 3}}, "model_settings: fit is given"),
    "a class": ({"model": nn.Linear}, r"model: Linear is a class\s+make one of it: Linear\(...\)"),
    "a function": ({"model": torch.relu}, "model: a .* is no module"),
    "tensors": ({"train": (torch.ones(4, 4), torch.ones(4))}, r"TensorDataset\(inputs, labels\)"),
    "a bare metric": ({"metrics": torch.argmax}, r'metrics=\{"accuracy": ...\}'),
    "names of metrics": ({"metrics": ["accuracy"]}, "metrics: a list has no names"),
    "a number as folder": ({"out": 5}, "out: 5 is no path"),
    "a mistyped resume": (
        {"resume": "Auto"},
        "resume: 'Auto' is not known\\s+did you mean \"auto\"",
    ),
    "resume of another trainer": ({"resume": True}, 'write "never" or "auto"'),
    "no hook": ({"callbacks": [WithoutHook()]}, r"'WithoutHook \(1\)' has no hook"),
    "a function as callback": ({"callbacks": [print]}, "has no hook, so nothing would call it"),
}


@pytest.mark.parametrize(("changed", "message"), SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_is_answered_in_words(toy, tmp_path, changed, message):
    given = {"model": toy.net(), "train": toy.loader(), "out": tmp_path / "run"}
    with pytest.raises(PtrainError, match=message):
        plugin_trainer.fit(
            **{**given, "loss": nn.CrossEntropyLoss(), "length": "1 step", **changed}
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_callbacks_are_called_in_the_order_of_their_list(toy, tmp_path):
    heard = []

    class Own:
        def ptrain_evaluation_end(self, metrics):
            metrics["val/own"] = 1.0

    plugin_trainer.fit(
        toy.net(), toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="3 epochs",
        callbacks=[*QUIET, Hears(heard, "a"), Own(), "early_stopping", Hears(heard, "b")],
        callback_settings={"early_stopping": {"watch": "val/own", "patience": 1}},
        out=tmp_path / "run", notify=lambda line: None,
    )  # fmt: skip
    assert heard == ["a", "b"]


def test_weights_and_models_of_a_run_that_is_loaded(toy, tmp_path):
    out = tmp_path / "run"
    plugin_trainer.fit(
        toy.net(), toy.loader(), loss=nn.CrossEntropyLoss(), length="1 step", out=out,
        callbacks=QUIET, notify=lambda line: None,
    )  # fmt: skip
    for changed, message in (
        ({"weights": "emaa"}, 'did you mean "ema"'),
        ({"model": nn.Linear}, "is a class"),
        ({"metrics": ["accuracy"]}, "has no names"),
    ):
        with pytest.raises(PtrainError, match=message):
            plugin_trainer.load_run(out, **{"model": toy.net(), **changed})


class Files:
    """A data module whose file is not there."""

    def train(self):
        with open("nofile.csv"):  # noqa: PTH123
            pass


def test_a_data_module_that_fails_is_named_with_its_line_and_the_folder(toy, tmp_path, monkeypatch):
    from plugin_trainer.data.evaluated import given_by

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Files failed in train\(\)") as caught:
        given_by(Files(), "train")
    hint = "\n".join(caught.value.hint)
    assert "FileNotFoundError" in hint and "nofile.csv" in hint and str(tmp_path) in hint
    assert "raised at" in hint and "test_arguments.py" in hint
    with pytest.raises(DataError, match=r"the data module Hears has no train\(\)"):
        given_by(Hears([], ""), "train")


def test_data_that_is_not_there_for_a_run_that_is_loaded_is_named(toy, tmp_path, monkeypatch):
    out = tmp_path / "run"
    plugin_trainer.fit(
        toy.net(), toy.loader(), loss=nn.CrossEntropyLoss(), length="1 step", out=out,
        callbacks=QUIET, notify=lambda line: None,
    )  # fmt: skip
    loaded = plugin_trainer.load_run(out, model=toy.net(), validation=toy.loader())
    monkeypatch.setattr(type(loaded.data), "validation", lambda self: open("nofile.csv"))  # noqa: PTH123, SIM115
    with pytest.raises(DataError, match=r"PlainData failed in validation\(\)"):
        loaded.evaluate()


FUNCTIONS = {
    "one argument": (lambda logits: logits.mean(), r"the metric 'own' failed\s+TypeError"),
    "a number a row": (
        lambda logits, labels: logits[:, 0],
        r"gives a tensor of \d+, not one",
    ),
    "nothing": (lambda logits, labels: None, "the metric 'own' failed"),
}


@pytest.mark.parametrize(("metric", "message"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_function_that_is_no_metric_is_refused_before_the_first_step(
    toy, tmp_path, metric, message
):
    with pytest.raises(PtrainError, match=message):
        plugin_trainer.fit(
            toy.net(), toy.loader(), toy.loader(), loss=nn.CrossEntropyLoss(), length="1 epoch",
            metrics={"own": metric}, out=tmp_path / "run", notify=lambda line: None,
        )  # fmt: skip
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_function_that_few_rows_are_too_few_for_is_not_refused(toy, tmp_path):
    def needs_many(logits, labels):
        if len(labels) < 16:
            raise ValueError("too few")
        return 1.0

    result = plugin_trainer.fit(
        toy.net(), toy.loader(), toy.loader(16, batch_size=4), loss=nn.CrossEntropyLoss(),
        length="1 step", metrics={"own": needs_many}, out=tmp_path / "run",
        notify=lambda line: None,
    )  # fmt: skip
    assert result.metrics["val/own"] == 1.0
