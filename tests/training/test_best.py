"""Which evaluation was the best, of each weight set, and the checkpoint that keeps it."""

from __future__ import annotations

import json
import math

import pytest
from torch import nn

import plugin_trainer
from plugin_trainer.callbacks.early_stopping import EarlyStopping
from plugin_trainer.callbacks.settings import EarlyStoppingSettings
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.training.checkpointing.best import Best, is_better
from plugin_trainer.training.checkpointing.store import CheckpointStore

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 2.0, 2.0, 5.0], (2.0, 3)),
        ("max", [3.0, 2.0, 5.0, 5.0], (5.0, 4)),
        ("min", [NAN, 4.0, NAN, 3.0], (3.0, 4)),
        ("min", [-INF, 4.0], (4.0, 2)),
        ("max", [INF, NAN, 1.0], (1.0, 3)),
        ("min", [NAN, INF], (None, 0)),
    ],
)
def test_the_best_is_the_newest_of_the_best_finite_values(mode, values, best):
    found = Best("val/x", mode)
    for step, value in enumerate(values, 1):
        found.improved_by({"val/x": value, "val/step": step}, step=step)
    assert (found.value, found.step) == best
    assert found.metrics == ({"val/x": best[0], "val/step": best[1]} if best[1] else {})


def test_the_oldest_of_equals_is_the_best_if_asked_for():
    found = Best("val/x", "min", keep_first=True)
    assert [found.improved_by({"val/x": 2.0}, step=step) for step in (1, 2)] == [True, False]
    assert found.step == 1


def test_min_delta_must_be_exceeded():
    assert not is_better(0.5, 1.0, "min", min_delta=0.5)
    assert is_better(0.49, 1.0, "min", min_delta=0.5)
    assert not is_better(1.5, 1.0, "max", min_delta=0.5)
    assert not is_better(1.0, 1.0, "min") and not is_better(1.0, 1.0, "max")


def test_a_best_measured_by_something_else_is_not_taken_back():
    state = Best("val/loss", "min", 0.1, 7).state_dict()
    other = Best("val/accuracy", "max")
    other.load_state_dict(state)
    assert other.value is None
    same = Best("val/loss", "min")
    same.load_state_dict(state)
    assert (same.value, same.step) == (0.1, 7)


class Scores:
    """Gives the evaluations of both weight sets scores from lists."""

    def __init__(self, raw, ema=()):
        self.raw, self.ema = iter(raw), iter(ema)

    def ptrain_evaluation_end(self, metrics):
        metrics["val/score"] = next(self.raw)
        if "val_ema/loss" in metrics:
            metrics["val_ema/score"] = next(self.ema)


def test_each_weight_set_has_a_best_of_its_own_that_is_never_pruned(fit, toy, tmp_path):
    result = fit(
        validation=toy.loader(4), callbacks=[Scores([1, 5, 2, 3, 4, 4], [1, 2, 9, 3, 4, 4])],
        evaluate="1 steps", save="1 steps", keep=1, ema={"decay": 0.5},
        best={"watch": "val/score", "mode": "max"},
    )  # fmt: skip
    assert (result.best["raw"].step, result.best["raw"].value) == (2, 5)
    assert (result.best["ema"].step, result.best["ema"].watch) == (3, "val_ema/score")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == [
        *("step-00000002", "step-00000003", "step-00000006"),
    ]
    pointer = json.loads((folder / "best_ema.json").read_text())
    assert pointer == {
        "checkpoint": "step-00000003", "step": 3, "watch": "val_ema/score", "value": 9,
    }  # fmt: skip
    for name in ("best", "best_ema", "latest"):
        assert "/" not in json.loads((folder / f"{name}.json").read_text())["checkpoint"]


def test_a_step_that_is_best_is_saved_though_no_checkpoint_was_due(fit, toy, tmp_path):
    fit(
        validation=toy.loader(4), callbacks=[Scores([1, 3, 2, 2, 2, 2])], evaluate="1 steps",
        save="never", best={"watch": "val/score", "mode": "max"}, keep="all",
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000001", "step-00000002", "step-00000006"]


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones(fit, toy):
    with pytest.raises(
        PtrainError, match=r"best\.watch: the evaluation gave no metric 'val/acc'"
    ) as e:
        fit(validation=toy.loader(4), best={"watch": "val/acc"}, evaluate="1 steps")
    assert e.value.hint[0] == "it gave: val/loss"
    assert e.value.exit_code == 2


def test_a_run_without_any_finite_score_has_no_best_and_ends_well(fit, toy, tmp_path):
    result = fit(
        validation=toy.loader(4), callbacks=[Scores([NAN] * 9)], best={"watch": "val/score"}
    )  # fmt: skip
    assert result.status == "finished" and result.best == {}
    assert not (tmp_path / "run" / "checkpoints" / "best.json").exists()


def test_without_a_metric_to_watch_none_is_the_best_and_the_last_weights_are_used(
    fit, toy, tmp_path
):
    result = fit(
        validation=toy.loader(4), callbacks=[Scores([1, 3, 2, 2, 2, 2])], evaluate="1 steps",
        best={"watch": ""}, keep="all",
    )  # fmt: skip
    assert result.best == {} and "val/score" in result.metrics
    run = tmp_path / "run"
    assert not (run / "checkpoints" / "best.json").exists()
    chosen = CheckpointStore(run).choose("", weights="raw")
    assert chosen.step == result.step


def test_a_run_that_gives_its_best_weights_back_has_their_metrics(toy, tmp_path):
    class Scores:
        """Best at step 2 of 4; the average too."""

        def ptrain_evaluation_end(self, run, metrics):
            for split in {name.partition("/")[0] for name in metrics}:
                metrics[f"{split}/score"] = -abs(run.progress.step - 2.0)

    stopping = EarlyStopping(
        EarlyStoppingSettings(watch="val/score", mode="max", patience=9, restore_best=True)
    )
    result = plugin_trainer.fit(
        toy.net(), toy.loader(), toy.loader(), test=toy.loader(), loss=nn.CrossEntropyLoss(),
        length="4 steps", evaluate="1 steps", ema={"decay": 0.5}, out=tmp_path / "run",
        best={"watch": "val/score", "mode": "max"},
        callbacks=["-progress_bar", "-tensorboard", Scores(), stopping],
    )  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    (second,) = (line for line in log if line["step"] == 2)
    assert {name: result.metrics[name] for name in result.metrics if name.startswith("val")} == {
        name: value for name, value in second.items() if name.startswith("val")
    }
    assert "test/loss" in result.metrics
    assert not result.model.training
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["metrics"] == result.metrics


@pytest.mark.parametrize("watched", ["early_stopping", "register_best"])
def test_what_goes_by_evaluations_is_refused_without_validation_data(toy, tmp_path, watched):
    with pytest.raises(PtrainError, match=r"validation data|no best"):
        plugin_trainer.fit(
            toy.net(), toy.loader(), loss="CrossEntropyLoss", length="1 step", out=tmp_path / "r",
            callbacks=["-progress_bar", "-tensorboard", watched],
            **({"callback_settings": {"register_best": {"name": "x"}}} if "reg" in watched else {}),
        )  # fmt: skip


def test_a_best_without_validation_data_is_mentioned(toy, tmp_path):
    lines = []
    plugin_trainer.fit(
        toy.net(), toy.loader(), loss="CrossEntropyLoss", length="1 step", out=tmp_path / "r",
        callbacks=["-progress_bar", "-tensorboard"], best={"watch": "val/accuracy"},
        notify=lines.append,
    )  # fmt: skip
    assert lines == ["best.watch has no effect: the run has no validation data"]


@pytest.mark.parametrize(("size", "accepted"), [(4, True), (3, False), (None, True)])
def test_a_batch_size_is_never_ignored(toy, tmp_path, size, accepted):
    def train(data, folder):
        given = {} if size is None else {"batch_size": size}
        return plugin_trainer.fit(
            toy.net(), data, loss="CrossEntropyLoss", length="1 epoch", out=tmp_path / folder,
            callbacks=["-progress_bar", "-tensorboard"], **given,
        ).step  # fmt: skip

    assert train(toy.rows(), "set") == math.ceil(12 / (size or 32))
    if accepted:
        assert train(toy.loader(batch_size=4), "loader") == 3
        return
    with pytest.raises(DataError, match="batch_size is 3, and the training loader has its own: 4"):
        train(toy.loader(batch_size=4), "loader")
