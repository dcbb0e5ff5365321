"""Which evaluation was the best, of each weight set, and the checkpoint that keeps it."""

from __future__ import annotations

import json
import math

import pytest

from plugin_trainer.errors import PtrainError
from plugin_trainer.training.best import Best, is_better
from plugin_trainer.training.checkpoints import CheckpointStore

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 2.0, 2.0, 5.0], (2.0, 2)),
        ("max", [3.0, 2.0, 5.0, 5.0], (5.0, 3)),
        ("min", [NAN, 4.0, NAN, 3.0], (3.0, 4)),
        ("min", [-INF, 4.0], (4.0, 2)),
        ("max", [INF, NAN, 1.0], (1.0, 3)),
        ("min", [NAN, INF], (None, 0)),
    ],
)
def test_the_best_is_the_first_of_the_best_finite_values(mode, values, best):
    found = Best("val/x", mode)
    for step, value in enumerate(values, 1):
        found.improved_by({"val/x": value}, step=step)
    assert (found.value, found.step) == best


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
