"""An evaluation scores both weight sets by counts, and leaves everything as it found it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from datasets import Dataset as Table
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import plugin_trainer
from plugin_trainer import StepOutcome
from plugin_trainer.data import Fed
from plugin_trainer.errors import DataError, PtrainError, TrainingFailed
from plugin_trainer.training.checkpointing.store import read_snapshot


class Heads(nn.Module):
    """Two answers, as a model of several heads gives them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x, labels_a, labels_b):
        logits = {"a": self.a(x), "b": self.b(x)}
        loss = functional.cross_entropy(logits["a"], labels_a)
        return {"loss": loss, "logits": logits}


def test_the_loss_is_a_mean_over_rows_and_not_over_batches(fit, toy):
    validation = toy.loader(10, shuffle=False, seed=1)
    result = fit(validation=validation)
    features, labels = toy.rows(10, seed=1).tensors
    with torch.no_grad():
        expected = functional.cross_entropy(result.model(features), labels)
        means = [functional.cross_entropy(result.model(x), y) for x, y in validation]
    assert result.metrics["val/loss"] == pytest.approx(float(expected), rel=1e-6)
    assert float(expected) != pytest.approx(float(torch.stack(means).mean()), rel=1e-4)


def test_the_loss_is_a_mean_over_valid_labels(fit, toy):
    data = toy.rows(8, seed=1)
    data.tensors[1][[0, 1, 2, 3, 5]] = -100  # the first batch has no valid label at all
    result = fit(validation=DataLoader(data, batch_size=4))
    features, labels = data.tensors
    with torch.no_grad():
        expected = functional.cross_entropy(result.model(features), labels)
    assert result.metrics["val/loss"] == pytest.approx(float(expected), rel=1e-6)


def test_raw_and_average_weights_are_two_sets(fit, toy):
    result = fit(
        validation=toy.loader(8), ema={"decay": 0.9},
        metrics={"accuracy": MulticlassAccuracy(num_classes=2)},
    )  # fmt: skip
    assert set(result.metrics) == {
        *("val/loss", "val/accuracy", "val_ema/loss", "val_ema/accuracy"),
    }
    assert result.metrics["val/loss"] != result.metrics["val_ema/loss"]
    assert set(result.best) == {"raw", "ema"}


def test_parts_and_metrics_of_the_model_are_averaged_beside_the_loss(fit, toy):
    class Model(nn.Linear):
        def forward(self, features, labels):
            loss = functional.cross_entropy(super().forward(features), labels)
            part, depth = loss / 2, features.mean()
            return {"loss": loss, "parts": {"task_loss": part}, "metrics": {"depth": depth}}

    result = fit(Model(4, 2), validation=toy.loader(8), loss=None)
    assert result.metrics["val/task_loss"] == pytest.approx(result.metrics["val/loss"] / 2)
    assert result.metrics["val/depth"] == pytest.approx(
        float(toy.rows(8).tensors[0].mean()), abs=1e-6
    )


# ------------------------------------------------------------------------------------------ metrics


def test_metrics_by_head_see_their_heads_logits_and_labels(fit):
    labels = {"labels_a": torch.tensor([0, 1, 0, 1]), "labels_b": torch.arange(4) % 3}
    rows = [{"x": torch.randn(4, 4), **labels} for _ in range(2)]
    result = fit(
        Heads(), rows, rows, loss=None,
        metrics={
            "a": {"accuracy": MulticlassAccuracy(num_classes=2, average="micro")},
            "b": {"accuracy": MulticlassAccuracy(num_classes=3, average="micro")},
        },
    )  # fmt: skip
    with torch.no_grad():
        right = [(result.model.b(row["x"]).argmax(1) == row["labels_b"]).float() for row in rows]
    assert result.metrics["val/b/accuracy"] == pytest.approx(float(torch.cat(right).mean()))
    assert "val/a/accuracy" in result.metrics


def test_a_metric_may_be_fed_in_its_own_way(fit, toy):
    fed = Fed(MeanMetric(), feed=lambda outputs, batch: (batch[0].sum(),))
    result = fit(validation=toy.loader(8), metrics={"sum": fed})
    assert result.metrics["val/sum"] == pytest.approx(float(toy.rows(8).tensors[0].sum() / 2))


def test_metrics_begin_anew_at_every_evaluation(fit, toy):
    counts = []
    fed = Fed(MeanMetric(), feed=lambda outputs, batch: counts.append(1) or (batch[0].sum(),))
    result = fit(validation=toy.loader(8), evaluate="1 steps", metrics={"sum": fed})
    assert len(counts) == 1 + 6 * 2  # one batch is put through before the first step
    assert result.metrics["val/sum"] == pytest.approx(float(toy.rows(8).tensors[0].sum() / 2))


def test_a_metric_that_is_not_one_number_is_refused(fit, toy):
    with pytest.raises(PtrainError, match=r"ConfusionMatrix\) gives a tensor of 4"):
        fit(validation=toy.loader(8), metrics={"m": MulticlassConfusionMatrix(num_classes=2)})


def test_a_metric_that_cannot_be_fed_is_named(fit):
    class Loss(nn.Linear):
        def forward(self, x):
            return super().forward(x).mean()

    batches = [{"x": torch.randn(4, 4)}]
    with pytest.raises(PtrainError, match="metric 'm': it cannot be fed: there are no labels in"):
        fit(
            Loss(4, 2), batches, batches, loss=None,
            metrics={"m": MulticlassAccuracy(num_classes=2)},
        )  # fmt: skip


# --------------------------------------------------------------------------------- nothing is moved


class Draws(nn.Module):
    """Draws from every random stream whenever it is called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drawn = nn.Linear(4, 2), []

    def forward(self, features):
        drawn = random.random() + np.random.rand() + float(torch.rand(()))
        if self.training:
            self.drawn.append(drawn)
        return self.linear(features) + 0.01 * drawn


def test_training_draws_the_same_with_and_without_evaluations(fit, toy):
    trained = {}
    for evaluate in ("1 steps", "never"):
        model = Draws()
        fit(
            model, evaluate=evaluate, out=evaluate, validation=toy.loader(8, shuffle=True),
            ema={"decay": 0.9},
        )  # fmt: skip
        trained[evaluate] = model
    assert trained["1 steps"].drawn == trained["never"].drawn
    assert len(set(trained["never"].drawn)) == 6
    assert torch.equal(trained["1 steps"].linear.weight, trained["never"].linear.weight)


def test_each_evaluation_draws_the_same(fit, toy, tmp_path, metrics_of):
    class Noise(nn.Linear):
        def forward(self, features):
            return super().forward(features) * 0 + torch.randn(len(features), 2)

    fit(Noise(4, 2), validation=toy.loader(8), evaluate="1 steps", log="never")
    found = [line["val/loss"] for line in metrics_of(tmp_path / "run") if "val/loss" in line]
    assert len(found) == 6 and len(set(found)) == 1


def test_the_model_is_in_evaluation_mode_inside_and_as_it_was_afterwards(fit, toy):
    modes = []

    class Watch:
        def ptrain_run_start(self, run):
            run.model[0].eval()  # frozen by its user, as batch normalisation often is

        def ptrain_evaluation_batch_end(self, run):
            modes.append(run.model.training or run.model[1].training)

        def ptrain_epoch_end(self, run):
            modes.append((run.model.training, run.model[0].training, run.model[1].training))

    fit(
        nn.Sequential(nn.BatchNorm1d(4), toy.net()), validation=toy.loader(4),
        callbacks=[Watch()], length="1 epoch",
    )  # fmt: skip
    assert modes == [False, (True, False, True)]


def test_an_evaluation_computes_no_gradients(fit, toy):
    seen = []

    class Watch:
        def ptrain_evaluation_batch_end(self, outcome):
            seen.append(outcome.loss.requires_grad)

    fit(validation=toy.loader(4), callbacks=[Watch()], length="1 epoch")
    assert seen == [False]


def test_an_error_in_an_evaluation_leaves_the_raw_weights_in_the_checkpoint(fit, toy, tmp_path):
    class Fails:
        def ptrain_evaluation_batch_end(self, weights):
            if weights == "ema":
                raise ValueError("broken")

    model = toy.net()
    with pytest.raises(PtrainError):
        fit(model, validation=toy.loader(4), callbacks=[Fails()], ema={"decay": 0.5})
    saved = read_snapshot(tmp_path / "run" / "checkpoints" / "step-00000003").model
    assert torch.equal(saved["weight"], model.weight)
    assert model.training


# ------------------------------------------------------------------------------------------- errors


def test_empty_validation_data_is_refused_before_training(fit, toy):
    with pytest.raises(DataError, match="the validation data is empty"):
        fit(validation=DataLoader(toy.rows(0)))


def test_a_loader_without_a_length_is_evaluated_each_time(fit, toy, tmp_path, metrics_of):
    class Lines(IterableDataset):
        def __iter__(self):
            return iter(toy.rows(10, seed=1))

    fit(validation=DataLoader(Lines(), batch_size=4), evaluate="1 epoch", out="iterable")
    fit(validation=toy.loader(10, shuffle=False, seed=1), evaluate="1 epoch", out="rows")
    iterable, rows = (
        [line["val/loss"] for line in metrics_of(tmp_path / out) if "val/loss" in line]
        for out in ("iterable", "rows")
    )
    assert len(iterable) == 2 and iterable == rows


def test_validation_data_with_a_single_pass_is_refused_before_training(fit, toy):
    with pytest.raises(DataError, match="the validation data can be iterated only once"):
        fit(validation=iter(toy.loader(8)))


def test_hugging_face_data_sets_train_and_evaluate_in_batches(fit, toy):
    features, labels = toy.rows(12).tensors
    table = Table.from_dict({"x": features.tolist(), "labels": labels.tolist()})

    class Model(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    notes = []
    result = fit(
        Model(4, 2), *[table.with_format("torch")] * 2, batch_size=4, length="2 epochs",
        notify=notes.append,
    )  # fmt: skip
    assert result.step == 6 and result.samples == 24
    assert not notes  # resuming in it is exact
    with torch.no_grad():
        expected = functional.cross_entropy(result.model(features), labels)
    assert result.metrics["val/loss"] == pytest.approx(float(expected), rel=1e-6)


def test_validation_data_that_yields_nothing_is_refused(fit):
    class Nothing:
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="the data of the split 'val' is empty"):
        fit(validation=Nothing())


def test_a_replaced_forward_is_used_in_evaluations_too(fit, toy):
    class Replace:
        def ptrain_forward(self, run, batch):
            return StepOutcome(loss=run.model(batch[0]).sum() * 0 + 7.0, count=len(batch[0]))

    assert fit(validation=toy.loader(4), callbacks=[Replace()]).metrics == {"val/loss": 7.0}


def test_fit_without_validation_evaluates_nothing(fit):
    result = fit(evaluate="1 steps")
    assert result.metrics == {} and result.best == {}
    assert plugin_trainer.Result is type(result)


def test_an_evaluation_that_cannot_work_is_found_before_the_first_step(fit, toy, tmp_path):
    steps = []

    class Count:
        def ptrain_step_end(self, run):
            steps.append(run.progress.step)

    broken = Fed(MeanMetric(), feed=lambda outputs, batch: (outputs["no such output"],))
    with pytest.raises(TrainingFailed, match="the run failed after step 0"):
        fit(validation=toy.loader(8), metrics={"sum": broken}, callbacks=[Count()])
    assert steps == []
