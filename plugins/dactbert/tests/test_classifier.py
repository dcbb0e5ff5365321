"""The model: its contract with the engine, and the properties of DACT-BERT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_dactbert.classifier import IGNORED, HaltingClassifier
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import ClassifierSettings
from torch import Tensor
from torch.nn import functional as F

from plugin_trainer.data.texts.encoders import block_states
from plugin_trainer.early_exit.rules import Patience
from plugin_trainer.errors import PtrainError

MakeData = Callable[..., TextClassification]
MakeModel = Callable[..., HaltingClassifier]
KINDS = ("bert", "distilbert", "roberta")


def unit_outputs(model: HaltingClassifier, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The class probabilities y [N, B, C] and the halting values h [N, B]."""
    mask = batch["attention_mask"]
    states = block_states(
        model.encoder, input_ids=batch["input_ids"], attention_mask=mask, token_type_ids=None
    )
    logits_NBC, halting_NB = model.unit_logits(states, mask_BT=mask)
    return logits_NBC.softmax(-1), halting_NB.sigmoid()


def literal_answer(y_NBC: Tensor, h_NB: Tensor) -> Tensor:
    """a_N by the equations as they are printed."""
    p_B, a_BC = torch.ones_like(h_NB[0]), torch.zeros_like(y_NBC[0])
    for y_BC, h_B in zip(y_NBC, h_NB, strict=True):
        a_BC = y_BC * p_B.unsqueeze(-1) + a_BC * (1 - p_B.unsqueeze(-1))
        p_B = p_B * h_B
    return a_BC


def wide_awake(model: HaltingClassifier, data: TextClassification) -> HaltingClassifier:
    """The model with halting and answers that differ from row to row, so that exits do too."""
    model.eval()
    batch = next(iter(data.train()))
    with torch.no_grad():
        for unit in model.units:
            unit.halting.weight.normal_()
            unit.answer.weight.normal_(std=3.0)
        _, h_NB = unit_outputs(model, batch)
        for unit, u_B in zip(model.units, h_NB.logit(), strict=True):
            scale = 3.0 / u_B.std()
            unit.halting.bias.sub_(u_B.mean()).mul_(scale)
            unit.halting.weight.mul_(scale)
    return model


# ---------------------------------------------------------------------------------- contract


def test_training_gives_loss_parts_count_and_the_full_answer(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    result = make_model()(**batch)
    assert result["loss"].requires_grad
    assert set(result["parts"]) == {"task_loss", "supervision", "halting"}
    assert int(result["count"]) == 6
    assert result["logits"].shape == (6, 2)
    assert "metrics" not in result
    assert "exit_block" not in result


def test_the_parts_add_up_to_the_loss(make_model: MakeModel, batch: dict[str, Any]) -> None:
    result = make_model(tau=0.3, deep_supervision=0.7)(**batch)
    torch.testing.assert_close(sum(result["parts"].values()), result["loss"])


def test_evaluation_adds_exits_and_their_metrics(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    result = make_model().eval()(**batch)
    assert result["exit_block"].shape == (6,)
    assert set(result["metrics"]) == {"mean_exit_block", "exit_agreement"}
    assert all(value.dim() == 0 for value in result["metrics"].values())
    torch.testing.assert_close(result["logits"].exp().sum(-1), torch.ones(6))


def test_without_labels_there_is_an_answer_and_no_loss(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    batch.pop("labels")
    result = make_model().eval()(**batch)
    assert "loss" not in result
    assert {"logits", "exit_block", "full_logits"} <= set(result)


def test_what_a_batch_holds_besides_is_ignored(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model().eval()
    plain = model(**batch)["logits"]
    assert torch.equal(model(**batch, difficulty=torch.ones(6), source="a file")["logits"], plain)


def joint(make_model: MakeModel, batch: dict[str, Any], **changes: Any) -> tuple[Any, Tensor]:
    """What a model with the joint loss gives for a batch, and its block logits in float64."""
    model = make_model(**{"loss": "joint", "pooling": "attention"} | changes).eval()
    with torch.no_grad():
        for unit in model.units:
            unit.answer.weight.normal_()
    mask = batch["attention_mask"]
    states = block_states(
        model.encoder, input_ids=batch["input_ids"], attention_mask=mask, token_type_ids=None
    )
    logits_NBC, halting_NB = model.unit_logits(states, mask_BT=mask)
    assert halting_NB is None
    return model(**batch), logits_NBC.detach().double()


def test_the_joint_loss_is_the_cross_entropy_of_every_block(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    batch["labels"][2] = IGNORED
    result, z_NBC = joint(make_model, batch, self_distillation=0.3)
    task, distillation = 0.0, 0.0
    for row in (0, 1, 3, 4, 5):
        last = z_NBC[2, row].softmax(-1)
        for block in range(3):
            own = z_NBC[block, row].log_softmax(-1)
            task -= (block + 1) / 6 * own[batch["labels"][row]].item()
            if block < 2:
                divergence = (last * (last.log() - own)).sum().item()
                distillation += (block + 1) / 3 * divergence
    parts = result["parts"]
    assert set(parts) == {"task_loss", "self_distillation"}
    assert int(result["count"]) == 5
    assert parts["task_loss"].item() == pytest.approx(task / 5, rel=1e-5)
    assert parts["self_distillation"].item() == pytest.approx(0.3 * distillation / 5, rel=1e-4)
    assert result["loss"].item() == pytest.approx(sum(x.item() for x in parts.values()))


def test_self_distillation_moves_no_answer_of_the_last_block(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model(loss="joint", self_distillation=1.0, dropout=0.0)
    model(**batch)["parts"]["self_distillation"].backward()
    assert model.units[-1].answer.weight.grad.abs().sum() == 0
    assert model.units[0].answer.weight.grad.abs().sum() > 0


def test_the_joint_loss_answers_at_full_depth(make_model: MakeModel, batch: dict[str, Any]) -> None:
    result, z_NBC = joint(make_model, batch)
    assert set(result["parts"]) == {"task_loss"}
    torch.testing.assert_close(result["logits"].double(), z_NBC[-1].log_softmax(-1))
    assert result["exit_block"].tolist() == [3] * 6
    assert torch.equal(result["logits"], result["full_logits"])


def test_the_last_loss_is_plain_fine_tuning(make_model: MakeModel, batch: dict[str, Any]) -> None:
    """One unit, on the last block; its cross-entropy alone, and no exits."""
    model = make_model(loss="last").eval()
    assert len(model.units) == 1
    result, z_NBC = joint(make_model, batch, loss="last")
    assert z_NBC.shape == (1, 6, 2)
    expected = F.cross_entropy(z_NBC[0], batch["labels"])
    torch.testing.assert_close(result["loss"].double(), expected)
    assert result["exit_block"].tolist() == [3] * 6
    torch.testing.assert_close(result["logits"].double(), z_NBC[0].log_softmax(-1))
    with pytest.raises(PtrainError, match="answers after its last block only"):
        model.exit_by(Patience(1))


def test_the_accuracy_of_all_blocks_is_weighted_as_their_loss(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    batch["labels"][2] = IGNORED
    result, z_NBC = joint(make_model, batch)
    kept_B = batch["labels"] != IGNORED
    right_NB = (z_NBC.argmax(-1) == batch["labels"])[:, kept_B].double()
    expected = sum(n / 6 * right_B.mean() for n, right_B in enumerate(right_NB, 1))
    torch.testing.assert_close(result["metrics"]["block_accuracy"].double(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_blocks_alone_are_a_smaller_encoder(
    kind: str, make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    folder = str(make_encoder(kind))
    data = make_data(tokenizer=folder)
    batch = next(iter(data.train()))
    whole = HaltingClassifier(ClassifierSettings(encoder=folder, loss="joint"), data).eval()
    first = HaltingClassifier(
        ClassifierSettings(encoder=folder, loss="last", first_blocks=2), data
    ).eval()
    assert first.num_blocks == 2
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = [
        block_states(model.encoder, **inputs, token_type_ids=None) for model in (whole, first)
    ]
    assert len(states[1]) == 2
    assert torch.equal(states[0][1], states[1][1])
    with pytest.raises(PtrainError, match="first_blocks is 4, the encoder has 3 blocks"):
        HaltingClassifier(ClassifierSettings(encoder=folder, first_blocks=4), data)
    with pytest.raises(PtrainError, match="first_blocks is for a pretrained encoder"):
        HaltingClassifier(ClassifierSettings(first_blocks=2), data)


def test_halting_logits_are_learned_or_come_from_agreement(make_model: MakeModel) -> None:
    assert make_model().learns_halting
    agreement = make_model(halting="agreement")
    assert not agreement.learns_halting
    assert agreement.units[0].halting is not None  # the loss teaches them all the same
    assert not make_model(loss="joint").learns_halting
    with pytest.raises(PtrainError, match="halting is 'learned', and loss = 'joint' teaches no"):
        make_model(loss="joint", halting="learned")


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [
        ("last", "tau", 0.2),
        ("last", "self_distillation", 0.3),
        ("joint", "tau", 0.2),
        ("joint", "delta", 0.5),
        ("joint", "initial_depth", 2.0),
        ("halting", "self_distillation", 0.3),
    ],
)
def test_a_key_that_the_loss_does_not_read_is_refused(
    make_model: MakeModel, loss: str, key: str, value: float
) -> None:
    with pytest.raises(PtrainError, match=f"{key} has no effect with loss = '{loss}'"):
        make_model(loss=loss, **{key: value})


def test_attention_begins_as_the_mean_of_the_valid_tokens(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    mean = make_model(pooling="mean").eval()
    attention = make_model(pooling="attention").eval()
    missing, unexpected = attention.load_state_dict(mean.state_dict(), strict=False)
    assert len(missing) == 3
    assert not unexpected
    torch.testing.assert_close(attention(**batch)["loss"], mean(**batch)["loss"])
    # What is behind the padding does not matter, and the query learns.
    loss = attention.train()(**batch)["loss"]
    loss.backward()
    assert all(unit.attention.query.weight.grad.abs().sum() > 0 for unit in attention.units)
    attention.eval()
    answers = attention(**batch)["logits"]
    longer = {
        key: F.pad(values, (0, 4)) if values.dim() == 2 else values for key, values in batch.items()
    }
    torch.testing.assert_close(attention(**longer)["logits"], answers)


def test_the_loss_is_the_literal_one(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tau=0.2, deep_supervision=0.6, initial_depth=2.0, dropout=0.0).eval()
    y_NBC, h_NB = unit_outputs(model, batch)
    labels_B = batch["labels"]
    task = F.nll_loss(literal_answer(y_NBC, h_NB).log(), labels_B)
    each_N = torch.stack([F.nll_loss(y_BC.log(), labels_B) for y_BC in y_NBC])
    supervision = 0.6 * (torch.tensor([1, 2, 3]) / 6 * each_N).sum()
    result = model(**batch)
    torch.testing.assert_close(result["parts"]["task_loss"], task)
    torch.testing.assert_close(result["parts"]["supervision"], supervision)
    torch.testing.assert_close(result["parts"]["halting"], 0.2 * h_NB.sum(0).mean())


def test_the_other_regulariser_is_the_sum_of_p(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model(tau=0.2, regulariser="sum_p", block_costs=(1.0, 2.0, 0.5)).eval()
    _, h_NB = unit_outputs(model, batch)
    costs_N1 = torch.tensor([[1.0], [2.0], [0.5]])
    expected = 0.2 * (h_NB.cumprod(0) * costs_N1).sum(0).mean()
    torch.testing.assert_close(model(**batch)["parts"]["halting"], expected)


def test_tau_of_zero_is_really_off(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tau=0.0, deep_supervision=0.0, dropout=0.0).eval()
    y_NBC, h_NB = unit_outputs(model, batch)
    result = model(**batch)
    assert set(result["parts"]) == {"task_loss"}
    torch.testing.assert_close(
        result["loss"], F.nll_loss(literal_answer(y_NBC, h_NB).log(), batch["labels"])
    )
    result["loss"].backward()
    last = model.units[-1].halting.bias.grad
    assert last is None or not last.any()  # h_N can feel nothing but the regulariser


def test_a_row_without_a_label_counts_for_nothing(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model().eval()
    labelled = model(**{name: rows[1:] for name, rows in batch.items()})
    batch["labels"][0] = IGNORED
    result = model(**batch)
    assert int(result["count"]) == 5
    torch.testing.assert_close(result["loss"], labelled["loss"])


def test_class_weights_weigh_the_rows_and_not_the_count(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    changes = {"tau": 0.0, "deep_supervision": 0.0, "dropout": 0.0}
    model = make_model(**changes, class_weights=(1.0, 3.0)).eval()
    y_NBC, h_NB = unit_outputs(model, batch)
    rows = F.nll_loss(literal_answer(y_NBC, h_NB).log(), batch["labels"], reduction="none")
    expected = (rows * torch.tensor([1.0, 3.0])[batch["labels"]]).sum() / 6
    torch.testing.assert_close(model(**batch)["loss"], expected)


def test_training_at_the_initial_depth_begins_there(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model(initial_depth=1.7)
    y_NBC, h_NB = unit_outputs(model, batch)
    del y_NBC
    depth_NB = literal_answer(
        torch.arange(1.0, 4.0).view(3, 1, 1).expand(3, 6, 1), h_NB
    )  # with y_n = n, a_N is the mean depth
    torch.testing.assert_close(depth_NB, torch.full((6, 1), 1.7), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_an_encoder_from_a_folder_gets_a_gradient(
    kind: str, make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    folder = str(make_encoder(kind))
    data = make_data(tokenizer=folder)
    model = HaltingClassifier(ClassifierSettings(encoder=folder, initial_depth=2.0), data)
    assert model.num_blocks == len(model.units) == 3
    model(**next(iter(data.train())))["loss"].backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    zero = [name for name, weight in model.named_parameters() if not weight.grad.any()]
    assert silent == []
    # The key's bias shifts all attention scores of a query alike, and softmax takes it out.
    assert [name for name in zero if not name.endswith(("key.bias", "k_lin.bias"))] == []


@pytest.mark.parametrize("kind", [*KINDS, ""])
def test_a_run_outlives_the_folder_its_encoder_came_from(
    kind: str,
    make_encoder: Callable[[str], Path],
    make_data: MakeData,
    train_file: Path,
    tmp_path: Path,
) -> None:
    folder = make_encoder(kind) if kind else None
    data = make_data(tokenizer=str(folder or ""))
    sizes = {} if folder else {"hidden_size": 16, "num_blocks": 3, "num_heads": 2}
    settings = ClassifierSettings(encoder=str(folder or ""), **sizes)
    model = wide_awake(HaltingClassifier(settings, data), data)
    assets = tmp_path / "assets"
    assets.mkdir()
    data.save_assets(assets)
    model.save_assets(assets)
    train_file.unlink()
    if folder:
        shutil.rmtree(folder)

    data_again = TextClassification.from_assets(data.settings, assets)
    again = HaltingClassifier.from_assets(settings, data_again, assets).eval()
    again.load_state_dict(model.state_dict())

    lines = ["a warm film", "dull and nowhere", "unheard of words"]
    (before,), (after,) = list(data.predict(lines)), list(data_again.predict(lines))
    assert before.keys() == after.keys()
    for key, value in model(**before).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, again(**after)[key]), key


def test_the_encoders_tokenizer_may_give_segments(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model().eval()
    plain = model(**batch)["logits"]
    segments = torch.zeros_like(batch["input_ids"])
    torch.testing.assert_close(model(**batch, token_type_ids=segments)["logits"], plain)


# ------------------------------------------------------------------------------------- exits


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_no_answer_depends_on_the_other_rows_of_its_batch(
    pooling: str, batch_size: int, make_model: MakeModel, negation_data: TextClassification
) -> None:
    model = wide_awake(
        make_model(negation_data, pooling=pooling, num_blocks=6, initializer_range=0.5),
        negation_data,
    )
    texts = negation_data.validation().dataset
    collate = negation_data.validation().collate_fn
    order = torch.randperm(len(texts)).tolist()
    alone, together = {}, {}
    with torch.no_grad():
        for row in range(len(texts)):
            result = model(**collate([texts[row]]))
            alone[row] = int(result["exit_block"]), int(result["logits"].argmax())
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            result = model(**collate([texts[row] for row in rows]))
            answers = result["logits"].argmax(-1).tolist()
            together |= dict(
                zip(rows, zip(result["exit_block"].tolist(), answers, strict=True), strict=True)
            )
    assert together == alone
    assert len({block for block, _ in alone.values()}) > 1, "the test needs rows that exit apart"


def test_without_delta_every_exit_answers_like_full_depth(
    make_model: MakeModel, negation_data: TextClassification
) -> None:
    blocks = set()
    for seed in range(5):
        torch.manual_seed(seed)
        model = wide_awake(
            make_model(negation_data, initializer_range=0.5, num_blocks=6), negation_data
        )
        for one in negation_data.validation():
            with torch.no_grad():
                result = model(**one)
            assert float(result["metrics"]["exit_agreement"]) == 1.0
            assert torch.equal(result["logits"].argmax(-1), result["full_logits"].argmax(-1))
            blocks |= set(result["exit_block"].tolist())
    assert len(blocks) > 2, "the test needs exits at several blocks"


def test_delta_leaves_earlier(make_model: MakeModel, negation_data: TextClassification) -> None:
    model = wide_awake(
        make_model(negation_data, initializer_range=0.5, num_blocks=6), negation_data
    )
    hasty = make_model(negation_data, initializer_range=0.5, num_blocks=6, delta=0.5).eval()
    hasty.load_state_dict(model.state_dict())
    batch = next(iter(negation_data.validation()))
    with torch.no_grad():
        careful, early = model(**batch)["exit_block"], hasty(**batch)["exit_block"]
    assert (early <= careful).all()
    assert (early < careful).any()


def test_logits_in_evaluation_are_the_answer_at_the_exit(
    make_model: MakeModel, negation_data: TextClassification
) -> None:
    model = wide_awake(
        make_model(negation_data, initializer_range=0.5, num_blocks=6), negation_data
    )
    batch = next(iter(negation_data.validation()))
    with torch.no_grad():
        result = model(**batch)
        y_NBC, h_NB = unit_outputs(model, batch)
    for row, block in enumerate(result["exit_block"].tolist()):
        expected_C = literal_answer(y_NBC[:block, [row]], h_NB[:block, [row]])[0]
        torch.testing.assert_close(result["logits"][row].exp(), expected_C, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------- precision


def test_under_bf16_autocast_units_and_loss_stay_in_float32(
    make_model: MakeModel, batch: dict[str, Any]
) -> None:
    model = make_model(dropout=0.0)
    exact = model(**batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(**batch)
        y_NBC, h_NB = unit_outputs(model, batch)
    assert y_NBC.dtype == h_NB.dtype == torch.float32
    assert result["loss"].dtype == torch.float32
    assert result["logits"].dtype == torch.float32
    torch.testing.assert_close(result["loss"], exact, atol=0.05, rtol=0.05)
    result["loss"].backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_a_few_steps_make_the_loss_smaller(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(dropout=0.0, initial_depth=2.0, initializer_range=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        result = model(**batch)
        losses.append(float(result["parts"]["task_loss"].detach()))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


# ------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_depth": 4.0}, "initial_depth is 4, the encoder has 3 blocks"),
        ({"block_costs": (1.0, 2.0)}, "block_costs has 2 numbers, the encoder has 3 blocks"),
        ({"class_weights": (1.0,)}, "class_weights has 1 numbers, the data has 2 labels"),
        ({"num_heads": 3}, "hidden_size is 16, which 3 attention heads do not divide"),
        ({"max_positions": 20}, "max_tokens is 32, the encoder takes 20"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_way_out(
    changes: dict[str, Any], message: str, make_model: MakeModel
) -> None:
    with pytest.raises(PtrainError, match=message) as caught:
        make_model(**changes)
    assert caught.value.hint


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(
    make_encoder: Callable[[str], Path], make_data: MakeData, write: Callable[..., Path]
) -> None:
    words = " ".join(f"{chr(97 + n % 26)}{chr(97 + n // 26)}word" for n in range(600))
    other = write("other.tsv", f"{words}\t0\n{words}\t1\n")
    data = make_data(train=str(other), tokenizer="", vocabulary_size=900)
    with pytest.raises(PtrainError, match="the tokenizer knows"):
        HaltingClassifier(ClassifierSettings(encoder=str(make_encoder("bert"))), data)
