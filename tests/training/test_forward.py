"""Whatever a model returns for whatever batch becomes one outcome, or an error that says why."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from plugin_trainer import StepOutcome
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.training.model.criterion import build_criterion
from plugin_trainer.training.model.forward import Forward

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


@pytest.mark.parametrize(
    "value", [{"loss": LOSS, "logits": LOGITS}, Both(LOSS, LOGITS), Output(LOSS, LOGITS)]
)
def test_the_runs_loss_replaces_the_models_own_and_says_so_once(value):
    lines = []
    forward = Forward(Returns(value), criterion=nn.CrossEntropyLoss(), notify=lines.append)
    for _ in range(2):
        outcome = forward({"x": X, "labels": Y})
    assert torch.equal(outcome.loss, nn.functional.cross_entropy(LOGITS, Y))
    assert lines == ["the run's loss replaces the one that the model returns"]


@pytest.mark.parametrize("value", [{"loss": LOSS}, StepOutcome(LOSS, outputs={"logits": LOGITS})])
def test_a_loss_that_nothing_could_be_made_of_is_refused(value):
    with pytest.raises(PtrainError, match="the run has a loss, and Returns returns its own"):
        outcome_of(value, criterion=nn.CrossEntropyLoss())


def test_what_data_sets_call_label_is_passed_to_models_that_call_it_labels():
    class Model(nn.Module):
        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(x, labels), "logits": x}

    outcome = Forward(Model())({"x": LOGITS, "label": Y})
    assert torch.equal(outcome.loss, nn.functional.cross_entropy(LOGITS, Y))


@pytest.mark.parametrize("value", [LOSS, (LOSS,), [LOSS], (LOSS, X)])
def test_one_number_without_a_name_is_the_logits_where_there_is_a_criterion(value):
    """Those of a last batch of one row, squeezed: taken for the loss, they would be minimised."""
    row = {"x": X[:1], "labels": torch.tensor(1.5)}
    outcome = outcome_of(value, row, criterion=nn.MSELoss())
    assert float(outcome.loss) == 1.0
    assert outcome.outputs["logits"] is LOSS
    assert Forward(Returns(value), criterion=nn.MSELoss()).outputs(row)["logits"] is LOSS


def test_one_number_for_several_labels_is_refused():
    with pytest.raises(PtrainError, match="the model returned one number for 3 labels") as caught:
        outcome_of(LOSS, criterion=nn.MSELoss())
    assert "return {'loss': loss}" in caught.value.hint[0]


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


# ------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("ignored", "labels", "count"),
    [(-100, [0, 1, -100], 2), (0, [0, 1, 1], 2), (1, [1, 1, 0], 1), (7, [0, 1, 1], 3)],
)
def test_the_labels_that_the_criterion_ignores_are_not_counted(ignored, labels, count):
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    outcome = outcome_of(LOGITS, {"x": X, "labels": torch.tensor(labels)}, criterion=criterion)
    assert int(outcome.count) == count


def test_a_criterion_that_ignores_no_class_leaves_the_usual_one_out():
    class Dice(nn.Module):
        ignore_index = None

        def forward(self, logits, labels):
            return logits.mean()

    assert int(outcome_of(LOGITS, criterion=Dice()).count) == 2


# -------------------------------------------------------------------------- models of transformers

SMALL = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LAYERS = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, **SMALL}
BERT = {"num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {
    "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, **SMALL,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
BART = {
    "d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16,
    "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, **SMALL,
    "dropout": 0.0,
}  # fmt: skip
T5 = {
    "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, **SMALL,
    "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip


def hugging_face(config, model, options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def unequal_rows(count=8):
    """Rows of text of unequal lengths, whose labels end with them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (count, 8), generator=generator)
    over = torch.arange(8)[None] >= torch.tensor([2 + n % 7 for n in range(count)])[:, None]
    return {"input_ids": ids, "labels": ids.masked_fill(over, -100)}


class Adapted(nn.Module):
    """A model inside of another that knows it as its base, as adapters do."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_model(self):
        return self.base

    def forward(self, *batch, **named):
        return self.base(*batch, **named)


def test_a_batch_is_as_long_as_the_model_under_an_adapter_takes():
    batch = [torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 1])]
    with pytest.raises(PtrainError, match=r"the batch has 3 entries, .* no more than 1"):
        Forward(Adapted(nn.Linear(4, 2)))(batch)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("config", "model", "options"),
    [
        ("GPT2Config", "GPT2LMHeadModel", GPT2),
        ("LlamaConfig", "LlamaForCausalLM", {"num_attention_heads": 2, **LAYERS}),
        ("BertConfig", "BertForMaskedLM", BERT | LAYERS),
        ("BertConfig", "BertLMHeadModel", BERT | LAYERS | {"is_decoder": True}),
        ("BartConfig", "BartForCausalLM", BART),
        ("BartConfig", "BartForConditionalGeneration", BART),
        ("T5Config", "T5ForConditionalGeneration", T5),
    ],
)
def test_a_models_own_loss_is_a_mean_over_what_is_counted(config, model, options, wrapped):
    """Whether it shifts its labels or not: the parts of a batch add up to the whole."""
    net = hugging_face(config, model, options)
    forward = Forward(Adapted(net) if wrapped else net)
    batch = unequal_rows()
    with torch.no_grad():
        whole = forward(batch)
        parts = [
            forward({name: value[rows] for name, value in batch.items()})
            for rows in (slice(0, 3), slice(3, 8))
        ]
    assert int(whole.count) == sum(int(part.count) for part in parts)
    total = sum(float(part.loss) * int(part.count) for part in parts)
    assert total == pytest.approx(float(whole.loss) * int(whole.count), rel=1e-5)


def test_accumulating_a_causal_language_model_is_the_big_batch(fit):
    rows = unequal_rows()
    samples = [{name: value[n] for name, value in rows.items()} for n in range(8)]
    trained = []
    for size in (8, 4):
        net = hugging_face("GPT2Config", "GPT2LMHeadModel", GPT2)
        fit(
            net, DataLoader(samples, batch_size=size), loss=None, length="1 step",
            accumulate=8 // size, out=f"by {size}",
            optimizer={"name": "SGD", "learning_rate": 1.0, "weight_decay": 0.0},
        )  # fmt: skip
        trained.append(dict(net.named_parameters()))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-5, atol=1e-6)


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
