"""What an evaluation would not give is found before the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from plugin_trainer import StepOutcome
from plugin_trainer.errors import PtrainError


class Steps:
    """Counts the steps that were made, and is no cause to wait for an evaluation."""

    def __init__(self):
        self.count = 0

    def ptrain_step_end(self):
        self.count += 1


@pytest.fixture
def train(fit, toy):
    """A run with a validation split and one metric, 'accuracy'."""
    return lambda **settings: fit(
        validation=toy.loader(4), metrics={"accuracy": MulticlassAccuracy(2)}, **settings
    )


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("best.watch", {"best": {"watch": "val/acuracy"}}),
        (
            "early_stopping.watch",
            {"callback_settings": {"early_stopping": {"watch": "val/acuracy"}}},
        ),
        ("schedule.watch", {"schedule": {"name": "ReduceLROnPlateau", "watch": "val/acuracy"}}),
        # Without an average there is none to watch.
        (
            "early_stopping.watch",
            {"callback_settings": {"early_stopping": {"watch": "val_ema/accuracy"}}},
        ),
    ],
)
def test_a_mistyped_metric_is_found_before_the_first_step(train, setting, settings, tmp_path):
    steps = Steps()
    callbacks = [steps, *(["early_stopping"] if "early" in setting else [])]
    with pytest.raises(PtrainError, match=f"{setting}: the evaluation gave no metric") as caught:
        train(callbacks=callbacks, **settings)
    assert caught.value.hint[0] == "did you mean 'val/accuracy'?"
    assert caught.value.exit_code == 2
    assert steps.count == 0


def test_what_evaluations_give_may_be_watched(train):
    result = train(
        callbacks=["early_stopping"],
        ema={"decay": 0.5},
        best={"watch": "val/accuracy", "mode": "max"},
        callback_settings={"early_stopping": {"watch": "val_ema/loss"}},
        schedule={"name": "ReduceLROnPlateau", "watch": "val_ema/accuracy"},
    )
    assert result.step == 6


def test_a_callback_may_add_what_is_watched(train):
    class Adds:
        def ptrain_evaluation_end(self, run, metrics):
            metrics["val/score"] = 1.0

    assert train(callbacks=[Adds()], best={"watch": "val/score"}).best["raw"].value == 1.0
    steps = Steps()
    with pytest.raises(PtrainError, match="gave no metric 'val/skore'") as caught:
        train(callbacks=[Adds(), steps], best={"watch": "val/skore"}, out="other")
    assert "did you mean 'val/score'?" in caught.value.hint
    assert steps.count == 3  # which only the first evaluation can tell


def test_a_callback_may_say_what_it_watches(train):
    class Watches:
        def ptrain_run_start(self, run):
            run.watch("val/f1", setting="mine.watch")

    with pytest.raises(PtrainError, match=r"mine\.watch: the evaluation gave no metric 'val/f1'"):
        train(callbacks=[Watches()])


def test_without_validation_data_nothing_is_watched(fit):
    assert fit(best={"watch": "val/f1"}).step == 6


class ByBatch(nn.Module):
    """Gives each batch's accuracy under the name of its source."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, source, labels):
        loss = nn.functional.cross_entropy(self.linear(x), labels)
        return StepOutcome(loss, count=len(x), metrics={f"loss_{source}": loss})


def test_what_only_later_batches_give_may_be_watched(fit):
    batch = {"x": torch.randn(2, 4), "labels": torch.tensor([0, 1])}
    batches = [{**batch, "source": source} for source in "aab"]
    settings = {"length": "3 steps", "loss": None, "validation": batches}
    result = fit(ByBatch(), batches, best={"watch": "val/loss_b"}, **settings)
    assert result.best["raw"].watch == "val/loss_b"
    steps = Steps()
    with pytest.raises(PtrainError, match="gave no metric 'val/loss_c'") as caught:
        fit(
            ByBatch(), batches, best={"watch": "val/loss_c"}, callbacks=[steps], out="b", **settings
        )
    assert "it gave: val/loss, val/loss_a, val/loss_b" in caught.value.hint
    assert steps.count == 0
