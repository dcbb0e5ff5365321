"""Whatever a model returns for whatever batch becomes one outcome, or an error that says why."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from plugin_trainer import StepOutcome
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.training.forward import Forward, build_criterion

X = torch.arange(12.0).view(3, 4)
Y = torch.tensor([0, 1, -100])
LOGITS = X[:, :2]
LOSS = torch.tensor(2.5)

Both = namedtuple("Both", "loss logits")


class ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping whose loss is an attribute too."""

    @property
    def loss(self):
        return self["loss"]


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Returns(nn.Module):
    """Returns one thing, and remembers what it was called with."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        return self.value


class Takes(nn.Module):
    """Takes two of the batch's keys."""

    def forward(self, x, labels=None):
        return {"logits": x, "loss": LOSS}


def outcome_of(value, batch=None, **options) -> StepOutcome:
    return Forward(Returns(value), **options)({"x": X, "labels": Y} if batch is None else batch)


# ------------------------------------------------------------------------------- what models return


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        (ModelOutput(loss=LOSS, logits=LOGITS), {"logits"}),
        ({"loss": LOSS, "logits": LOGITS, "hidden": X}, {"logits", "hidden"}),
        (Both(LOSS, LOGITS), {"logits"}),
        ((LOSS, LOGITS), {"logits"}),
        ([LOSS], set()),
        (LOSS, set()),
        (Output(LOSS, LOGITS), {"logits"}),
    ],
)
def test_a_loss_is_found_however_it_is_returned(value, outputs):
    outcome = outcome_of(value)
    assert outcome.loss is LOSS
    assert set(outcome.outputs) == outputs
    assert int(outcome.count) == 2


@pytest.mark.parametrize(
    "value",
    [
        LOGITS,
        {"logits": LOGITS},
        ModelOutput(loss=None, logits=LOGITS),
        (LOGITS, X),
        Output(None, LOGITS),
    ],
)
def test_logits_go_through_the_criterion(value):
    outcome = outcome_of(value, criterion=nn.CrossEntropyLoss())
    assert torch.equal(outcome.loss, nn.functional.cross_entropy(LOGITS, Y))
    assert outcome.outputs["logits"] is LOGITS


def test_the_models_own_loss_counts_more_than_a_criterion():
    assert outcome_of((LOSS, LOGITS), criterion=nn.CrossEntropyLoss()).loss is LOSS


def test_an_outcome_is_taken_as_it_is():
    given = StepOutcome(loss=LOSS, count=7)
    assert outcome_of(given) is given


def test_parts_counts_and_metrics_are_taken_out_of_a_mapping():
    outcome = outcome_of(
        {"loss": LOSS, "parts": {"task": LOSS}, "count": 9, "metrics": {"depth": LOSS}, "a": 1}
    )
    assert outcome.parts == {"task": LOSS} and outcome.metrics == {"depth": LOSS}
    assert outcome.count == 9
    assert outcome.outputs == {"a": 1}


def test_without_labels_the_rows_are_counted():
    assert outcome_of(LOSS, {"x": X}).count == 3


# ---------------------------------------------------------------------------- how models are called


def test_a_mapping_is_passed_by_name_as_far_as_the_model_takes_it():
    forward = Forward(Takes())
    forward({"x": X, "labels": Y, "number": 1, "text": "a"})
    assert forward.not_passed == {"number", "text"}


def test_a_model_that_takes_anything_is_given_the_whole_batch():
    model = Returns(LOSS)
    Forward(model)({"x": X, "labels": Y, "number": 1})
    assert set(model.kwargs) == {"x", "labels", "number"}


def test_a_tuple_is_passed_without_its_labels_only_to_be_given_to_the_criterion():
    model = Returns(LOGITS)
    Forward(model, criterion=nn.CrossEntropyLoss())((X, Y))
    assert len(model.args) == 1
    model = Returns(LOSS)
    Forward(model)((X, Y))
    assert len(model.args) == 2


def test_a_tensor_is_the_one_argument():
    model = Returns(LOSS)
    assert Forward(model)(X).count == 3
    assert model.args[0] is X


def test_the_configured_label_is_what_the_criterion_sees():
    outcome = outcome_of(
        LOGITS,
        {"x": X, "labels": Y, "target": torch.tensor([1, 1, 1])},
        criterion=nn.CrossEntropyLoss(),
        label="target",
    )
    assert torch.equal(outcome.loss, nn.functional.cross_entropy(LOGITS, torch.tensor([1, 1, 1])))
    assert int(outcome.count) == 3


def test_labels_of_several_heads_reach_the_criterion_by_head():
    seen = []

    def criterion(logits, labels):
        seen.append(labels)
        return LOSS

    outcome_of(LOGITS, {"x": X, "labels_a": Y, "labels_b": Y}, criterion=criterion)
    assert set(seen[0]) == {"a", "b"}


@pytest.mark.parametrize("value", [LOGITS, (LOSS, LOGITS), {"logits": LOGITS}, StepOutcome(LOSS)])
def test_a_batch_without_labels_gives_the_outputs_alone(value):
    outputs = Forward(Returns(value)).outputs({"x": X})
    assert isinstance(outputs, dict)
    assert outputs.get("logits") is (None if isinstance(value, StepOutcome) else LOGITS)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("value", "batch", "options", "error", "message"),
    [
        (LOGITS, None, {}, PtrainError, "the model returned no loss, only: logits"),
        ({}, None, {}, PtrainError, "the model returned no loss, only: nothing"),
        ("text", None, {}, PtrainError, "the model returned a str"),
        (None, None, {}, PtrainError, "the model returned a NoneType"),
        ((), None, {}, PtrainError, "the model returned a tuple"),
        ({"loss": X}, None, {}, PtrainError, "the loss is not one number but (3, 4)"),
        ({"loss": 2.5}, None, {}, PtrainError, "the loss is not one number but float"),
        (
            LOGITS,
            {"x": X, "y": Y},
            {"criterion": nn.CrossEntropyLoss()},
            DataError,
            "the batch has no labels; it has: x, y",
        ),
        (
            LOGITS,
            X,
            {"criterion": nn.CrossEntropyLoss()},
            DataError,
            "the batch has no labels; it has: Tensor",
        ),
        (
            LOSS,
            None,
            {"label": "y"},
            DataError,
            "the batch has no labels under 'y'; it has: x, lab",
        ),
    ],
)
def test_what_makes_no_loss_says_what_was_seen(value, batch, options, error, message):
    with pytest.raises(error) as caught:
        outcome_of(value, batch, **options)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_batch_of_which_the_model_takes_nothing_is_refused():
    with pytest.raises(DataError, match="takes none of the batch's keys: ids, mask") as caught:
        Forward(Takes())({"ids": X, "mask": X})
    assert caught.value.hint == ("it takes: labels, x",)


# ---------------------------------------------------------------------------------------- criterion


def test_a_criterion_is_named_by_its_class_or_its_path():
    assert build_criterion("") is None
    assert isinstance(build_criterion("MSELoss"), nn.MSELoss)
    assert isinstance(build_criterion("torch.nn:L1Loss"), nn.L1Loss)
    assert build_criterion("torch.nn.functional:mse_loss") is nn.functional.mse_loss


@pytest.mark.parametrize("name", ["CrossEntropy", "functional", "Parameter", "Linear"])
def test_an_unknown_criterion_lists_the_known_ones(name):
    with pytest.raises(PtrainError, match=f"loss: torch.nn has no loss '{name}'") as caught:
        build_criterion(name)
    assert "CrossEntropyLoss" in caught.value.hint[0]
