"""A loss that would be trained wrongly is refused before the first step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.errors import PtrainError
from plugin_trainer.training.model.criterion import build_criterion

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}


def summed(logits, labels):
    return F.cross_entropy(logits, labels, reduction="sum")


class Penalised(nn.Module):
    """A mean and a term that does not grow with the batch: no sum."""

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels) + logits.mean() ** 2


class Centres(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(2, 2))

    def forward(self, embedded, labels):
        return F.mse_loss(embedded, self.centres[labels])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.MSELoss(reduction="none"),
        partial(F.cross_entropy, reduction="sum"),
        partial(partial(F.mse_loss, reduction="sum")),
    ],
)
def test_a_reduction_that_is_no_mean_is_refused(loss):
    with pytest.raises(PtrainError, match="and a run needs the mean") as caught:
        build_criterion(loss)
    assert "reduction='mean'" in caught.value.hint[0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch_size", [6, 7, 12])
def test_a_sum_that_does_not_say_so_is_found_before_the_first_step(toy, accumulate, batch_size):
    """Twelve rows: of twelve, of two batches and of two of which the halves differ."""
    data = toy.loader(batch_size=batch_size, shuffle=False)
    model = toy.net()
    before = model.weight.detach().clone()
    with pytest.raises(PtrainError, match="it is a sum: twice the rows give twice the loss"):
        plugin_trainer.fit(model, data, data, loss=summed, accumulate=accumulate, **QUIET)
    assert torch.equal(model.weight, before)


class Own(nn.Linear):
    """A model that returns its own loss."""

    def __init__(self, reduction, count=None):
        super().__init__(4, 2)
        self.reduction, self.count = reduction, count

    def forward(self, x, labels):
        logits = super().forward(x)
        loss = F.cross_entropy(logits, labels, reduction=self.reduction)
        return {"loss": loss, "logits": logits, **({"count": self.count} if self.count else {})}


def by_name(toy, batch_size=4):
    rows = [{"x": x, "labels": y} for x, y in toy.rows()]
    return DataLoader(rows, batch_size=batch_size)


def test_a_models_own_sum_is_found_too(toy, tmp_path):
    with pytest.raises(PtrainError, match="it is a sum"):
        plugin_trainer.fit(Own("sum"), by_name(toy), by_name(toy), out=tmp_path / "r", **QUIET)


@pytest.mark.parametrize("loss", [Penalised(), F.cross_entropy, lambda z, y: F.cross_entropy(z, y)])
def test_means_of_any_kind_are_trained_with(toy, tmp_path, loss):
    data = toy.loader(batch_size=5)
    result = plugin_trainer.fit(
        toy.net(), data, data, loss=loss, length="1 step", out=tmp_path / "r", **QUIET
    )
    assert result.status == "finished"
    assert plugin_trainer.fit(
        Own("mean"), by_name(toy), by_name(toy), length="1 step", out=tmp_path / "o", **QUIET
    ).step == 1  # fmt: skip


def test_a_loss_with_parameters_is_refused_unless_the_model_has_them(toy, tmp_path):
    with pytest.raises(PtrainError, match=r"Centres has parameters \(centres\)") as caught:
        build_criterion(Centres(), model=toy.net())
    assert "make it a part of the model" in caught.value.hint[0]
    model, loss = toy.net(), Centres()
    model.centres = loss.centres
    assert build_criterion(loss, model=model) is loss


def test_a_loss_follows_the_model_into_evaluations_and_its_buffers_into_the_checkpoint(
    toy, tmp_path
):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.modes = set()

        def forward(self, logits, labels):
            self.modes.add((self.training, torch.is_grad_enabled()))
            if self.training:
                self.seen += 1
            return F.cross_entropy(logits, labels)

    data = toy.loader()
    whole, first, second = Counts(), Counts(), Counts()
    common = {"out": tmp_path / "run", "resume": "auto", **QUIET}
    plugin_trainer.fit(toy.net(), data, data, loss=whole, length="6 steps", **QUIET)
    plugin_trainer.fit(toy.net(), data, data, loss=first, length="2 steps", **common)
    plugin_trainer.fit(
        toy.net(), data, data, loss=second, length="6 steps", allow=["length"], **common
    )
    assert whole.modes == {(True, True), (False, False)}
    assert whole.seen == second.seen == 6


def test_a_loss_given_as_a_class_is_made(toy):
    assert isinstance(build_criterion(nn.CrossEntropyLoss), nn.CrossEntropyLoss)
    with pytest.raises(PtrainError, match="Needs cannot be made without arguments"):

        class Needs(nn.Module):
            def __init__(self, width):
                super().__init__()

        build_criterion(Needs)
    with pytest.raises(PtrainError, match="loss: int cannot be called"):
        build_criterion(3)


# ------------------------------------------------------------------------------ metrics of logits


LOGITS = torch.tensor([0.3, 0.1, 0.4, 0.2, 2.0, -2.0, 0.4, 0.1])


class Fixed(nn.Module):
    """Returns its input."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + 0 * self.unused


def evaluated(x, labels, *, loss, metric, batch_size, folder):
    data = TensorDataset(x, labels)
    return plugin_trainer.fit(
        Fixed(), DataLoader(data, len(x)), DataLoader(data, batch_size), loss=loss,
        metrics={"metric": metric}, length="1 step", out=folder, **QUIET,
    ).metrics["val/metric"]  # fmt: skip


@pytest.mark.parametrize("batch_size", [8, 1])
def test_logits_that_lie_between_0_and_1_are_no_probabilities(tmp_path, batch_size):
    from torchmetrics.classification import (
        BinaryAccuracy,
    )

    labels = (LOGITS.sigmoid() > 0.5).float()
    more = {"batch_size": batch_size, "folder": tmp_path / "run"}
    bce = nn.BCEWithLogitsLoss()
    assert evaluated(LOGITS, labels, loss=bce, metric=BinaryAccuracy(), **more) == 1.0


@pytest.mark.parametrize("batch_size", [8, 2, 1])
def test_metrics_of_logits_are_those_of_probabilities_in_any_batch(tmp_path, batch_size):
    from torchmetrics.classification import (
        BinaryCalibrationError,
        MulticlassCalibrationError,
        MultilabelAccuracy,
    )

    labels_B = torch.tensor([0, 1, 1, 1, 0, 0, 1, 0])
    z_BC = torch.stack([LOGITS, LOGITS.flip(0), 0.2 * LOGITS], 1)
    y_BC = torch.stack([labels_B, 1 - labels_B, labels_B], 1).float()
    for name, x, y, loss, make, probabilities in (
        ("binary", LOGITS, labels_B.float(), "BCEWithLogitsLoss",
         BinaryCalibrationError, "sigmoid"),
        ("labels", z_BC, y_BC, F.binary_cross_entropy_with_logits,
         lambda: MultilabelAccuracy(3, threshold=0.55), "sigmoid"),
        ("classes", z_BC, labels_B, nn.CrossEntropyLoss(),
         lambda: MulticlassCalibrationError(3), "softmax"),
    ):  # fmt: skip
        expected = make()
        p = x.sigmoid() if probabilities == "sigmoid" else x.softmax(1)
        expected.update(p, y.long() if name != "classes" else y)
        found = evaluated(
            x, y, loss=loss, metric=make(), batch_size=batch_size, folder=tmp_path / name
        )
        assert found == pytest.approx(float(expected.compute()), rel=1e-6), name


def test_probabilities_are_left_as_they_are_for_a_loss_of_probabilities(tmp_path):
    from torchmetrics.classification import BinaryAccuracy

    p = torch.tensor([0.3, 0.1, 0.6, 0.9])
    labels = (p > 0.5).float()
    found = evaluated(
        p, labels, loss=nn.BCELoss(), metric=BinaryAccuracy(), batch_size=4, folder=tmp_path / "r"
    )
    assert found == 1.0


def test_a_plain_function_is_a_metric_over_all_rows(toy, tmp_path):
    calls = []

    def spread(logits, labels):
        calls.append(len(labels))
        return float(logits.argmax(1).eq(labels).float().std())

    data = toy.loader(batch_size=5)
    result = plugin_trainer.fit(
        toy.net(), data, data, loss=nn.CrossEntropyLoss(), metrics={"spread": spread},
        length="1 step", out=tmp_path / "run", **QUIET,
    )  # fmt: skip
    right = result.model(toy.rows().tensors[0]).argmax(1).eq(toy.rows().tensors[1]).float()
    assert calls[-1] == 12
    assert result.metrics["val/spread"] == pytest.approx(float(right.std()))


def test_a_metric_class_is_refused_in_words(toy, tmp_path):
    from torchmetrics.classification import BinaryAccuracy

    data = toy.loader()
    with pytest.raises(PtrainError, match="the metric 'BinaryAccuracy' is no metric") as caught:
        plugin_trainer.fit(
            toy.net(), data, data, loss="CrossEntropyLoss", metrics={"a": BinaryAccuracy}, **QUIET
        )
    assert caught.value.hint[0] == "make one of the class: BinaryAccuracy()"
