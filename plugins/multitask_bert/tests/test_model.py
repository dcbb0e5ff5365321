"""The model: what its heads read, and its contract with data and engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.heads import MARKS, Head
from ptrain_multitask_bert.model import SharedEncoder
from ptrain_multitask_bert.settings import SharedEncoderSettings
from torch import Tensor

import plugin_trainer
from plugin_trainer.errors import DataError, PtrainError

MakeModel = Callable[..., SharedEncoder]
MakeData = Callable[..., Any]

LABELS = {
    "single_label": ("no", "yes"),
    "multi_label": ("cheap", "fast", "good"),
    "tokens": ("O", "B-person", "I-person"),
    "relation": ("none", "of(e1,e2)", "of(e2,e1)", "met"),
    "regression": (),
}


def head_of(kind: Any, *, task: str = "", name: str = "answer", **more: Any) -> Head:
    """A head of a kind, with labels that fit it; its task has the name of the kind."""
    return Head(task=task or kind, name=name, kind=kind, labels=LABELS[kind], **more)


def labels_of(kind: str, *, rows: int = 4, tokens: int = 7) -> torch.Tensor:
    """Random labels of a kind, without a missing one."""
    count = len(LABELS[kind])
    if kind == "regression":
        return torch.randn(rows)
    if kind == "multi_label":
        return torch.randint(2, (rows, count)).float()
    return torch.randint(count, (rows, tokens) if kind == "tokens" else (rows,))


def batch_of(kind: str, *, rows: int = 4, tokens: int = 7, labelled: bool = True) -> dict[str, Any]:
    """A batch of random tokens of a task named after its kind, with one head `answer`."""
    batch: dict[str, Any] = {
        "task": kind,
        "input_ids": torch.randint(5, 290, (rows, tokens)),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
    }
    if labelled:
        batch["labels_answer"] = labels_of(kind, rows=rows, tokens=tokens)
    if kind == "relation":
        batch["mark_positions"] = torch.tensor([[1, 4]] * rows)
    return batch


KINDS = tuple(LABELS)


@pytest.fixture
def model(make_model: MakeModel) -> SharedEncoder:
    """A model with a task of each kind, in evaluation mode."""
    return make_model(*map(head_of, KINDS)).eval()


# ---------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("encoder", ["bert", "distilbert", "roberta"])
def test_every_kind_of_head_answers_and_learns_on_every_encoder(
    encoder: str, make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    settings = SharedEncoderSettings(encoder=str(make_encoder(encoder)))
    model = SharedEncoder(settings, make_data(*map(head_of, KINDS)))
    shapes = {
        "single_label": (4, 2),
        "multi_label": (4, 3),
        "tokens": (4, 7, 3),
        "relation": (4, 4),
        "regression": (4,),
    }
    for kind, shape in shapes.items():
        found = model(**batch_of(kind))
        assert found["logits"]["answer"].shape == shape
        assert found["loss"].isfinite()
        found["loss"].backward()
        weight = model.heads[f"{kind}/answer"].linear.weight
        assert weight.grad is not None
        assert weight.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_padding(kind: str, model: SharedEncoder) -> None:
    batch = batch_of(kind, rows=2, tokens=9, labelled=False)
    batch["attention_mask"][0, 6:] = 0
    alone = {key: value if key == "task" else value[:1] for key, value in batch.items()}
    alone["input_ids"], alone["attention_mask"] = (
        alone[key][:, :6] for key in ("input_ids", "attention_mask")
    )
    both, one = model(**batch)["logits"]["answer"], model(**alone)["logits"]["answer"]
    torch.testing.assert_close(both[:1, :6] if kind == "tokens" else both[:1], one)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_head_of_a_whole_text_reads_the_pooled_state(pooling: str, make_model: MakeModel) -> None:
    model = make_model(head_of("single_label"), pooling=pooling).eval()
    batch = batch_of("single_label", labelled=False)
    states_BTH = model.encoder(batch["input_ids"]).last_hidden_state
    pooled_BH = states_BTH.mean(1) if pooling == "mean" else states_BTH[:, 0]
    expected = model.heads["single_label/answer"].linear(pooled_BH)
    torch.testing.assert_close(model(**batch)["logits"]["answer"], expected)


def test_a_relation_reads_the_states_of_both_marks_in_their_order(model: SharedEncoder) -> None:
    batch = batch_of("relation", rows=2, labelled=False)
    batch["mark_positions"] = torch.tensor([[0, 3], [5, 2]])
    states_BTH = model.encoder(batch["input_ids"]).last_hidden_state
    pairs = torch.stack(
        [
            torch.cat([states_BTH[0, 0], states_BTH[0, 3]]),
            torch.cat([states_BTH[1, 5], states_BTH[1, 2]]),
        ]
    )
    expected = model.heads["relation/answer"].linear(pairs)
    torch.testing.assert_close(model(**batch)["logits"]["answer"], expected)


def test_a_relation_without_marks_is_refused(model: SharedEncoder) -> None:
    batch = batch_of("relation")
    del batch["mark_positions"]
    with pytest.raises(DataError, match="task relation has no mark_positions"):
        model(**batch)


def test_dropout_is_on_in_training_only(make_model: MakeModel) -> None:
    model = make_model(head_of("single_label"), dropout=0.5)
    batch = batch_of("single_label")
    for answer in model.heads.values():
        assert answer.dropout.p == 0.5
    assert not torch.equal(model(**batch)["loss"], model(**batch)["loss"])
    model.eval()
    assert torch.equal(model(**batch)["loss"], model(**batch)["loss"])


def test_under_bf16_autocast_answers_and_loss_stay_in_float32(model: SharedEncoder) -> None:
    for kind in KINDS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**batch_of(kind))
        assert found["logits"]["answer"].dtype == torch.float32
        assert found["loss"].dtype == torch.float32


# ------------------------------------------------------------------------------------------ tasks


def test_a_batch_moves_the_encoder_and_the_heads_of_its_task_alone(model: SharedEncoder) -> None:
    model(**batch_of("tokens"))["loss"].backward()
    for address, answer in model.heads.items():
        assert (answer.linear.weight.grad is not None) == (address == "tokens/answer")
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_a_task_with_several_heads_is_read_once(make_model: MakeModel) -> None:
    heads = [
        head_of("single_label", task="mail", name="spam"),
        head_of("multi_label", task="mail", name="topics"),
        head_of("regression", task="mail", name="urgency"),
    ]
    model = make_model(*heads).eval()
    reads: list[Tensor] = []
    model.encoder.register_forward_hook(lambda *_: reads.append(torch.zeros(())))
    labels = {f"labels_{head.name}": labels_of(head.kind) for head in heads}
    batch = {**batch_of("single_label", labelled=False), "task": "mail", **labels}
    found = model(**batch)
    assert set(found["logits"]) == set(found["parts"]) == {"spam", "topics", "urgency"}
    torch.testing.assert_close(found["loss"], sum(found["parts"].values()))
    assert len(reads) == 1


def test_a_batch_of_an_unknown_task_is_refused(model: SharedEncoder) -> None:
    with pytest.raises(DataError, match="of the task 'stance'") as caught:
        model(**{**batch_of("tokens"), "task": "stance"})
    assert "single_label, multi_label" in caught.value.hint[0]
    batch = batch_of("tokens")
    del batch["task"]
    with pytest.raises(DataError, match="does not say its task"):
        model(**batch)


def test_with_one_task_a_batch_need_not_say_it(make_model: MakeModel) -> None:
    model = make_model(head_of("tokens")).eval()
    batch = batch_of("tokens")
    named = model(**batch)["loss"]
    del batch["task"]
    assert torch.equal(model(**batch)["loss"], named)


def test_without_labels_there_are_answers_and_no_loss(model: SharedEncoder) -> None:
    assert set(model(**batch_of("tokens", labelled=False))) == {"logits"}


@pytest.mark.parametrize(
    "name", ["keys", "type", "forward", "train", "0", "with a space", "überall"]
)
def test_tasks_and_heads_may_have_any_name(name: str, make_model: MakeModel) -> None:
    model = make_model(head_of("single_label", task=name, name=name))
    batch = {**batch_of("single_label", labelled=False), "task": name}
    batch[f"labels_{name}"] = labels_of("single_label")
    assert model(**batch)["loss"].isfinite()
    assert f"heads.{name}/{name}.linear.weight" in model.state_dict()


def test_what_else_a_batch_holds_is_left_alone(model: SharedEncoder) -> None:
    batch = batch_of("single_label")
    expected = model(**batch)["loss"]
    assert torch.equal(model(**batch, row=torch.arange(4), texts=["a"] * 4)["loss"], expected)


# ----------------------------------------------------------------------------------- its encoder


def test_the_marks_get_rows_of_their_own_and_no_other_row_changes(
    make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    settings = SharedEncoderSettings(encoder=str(make_encoder("bert")))
    data = make_data(head_of("relation"))
    given = SharedEncoder(settings, make_data(head_of("tokens"), marked=False))
    model = SharedEncoder(settings, data)
    before, after = (m.encoder.get_input_embeddings().weight for m in (given, model))
    assert len(after) == len(before) + len(MARKS) == len(data.tokenizer)
    assert torch.equal(after[: len(before)], before)
    marks = after[data.tokenizer.convert_tokens_to_ids(list(MARKS))]
    assert len(marks.unique(dim=0)) == len(MARKS)


def test_a_model_is_made_again_from_its_assets_without_the_encoders_folder(
    make_encoder: Callable[[str], Path], make_data: MakeData, tmp_path: Path
) -> None:
    folder = make_encoder("bert")
    settings, data = SharedEncoderSettings(encoder=str(folder)), make_data(head_of("relation"))
    model = SharedEncoder(settings, data).eval()
    model.save_assets(tmp_path)
    shutil.rmtree(folder)
    again = SharedEncoder.from_assets(settings, data, tmp_path).eval()
    again.load_state_dict(model.state_dict())
    batch = batch_of("relation")
    assert torch.equal(again(**batch)["loss"], model(**batch)["loss"])


def test_a_tokenizer_that_knows_more_than_the_encoder_is_refused(
    make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    data = make_data(head_of("single_label"))
    data.tokenizer.add_tokens(["etwas", "anderes"])
    with pytest.raises(PtrainError, match="the tokenizer knows") as caught:
        SharedEncoder(SharedEncoderSettings(encoder=str(make_encoder("bert"))), data)
    assert "data_settings.tokenizer" in caught.value.hint[0]


def test_a_window_longer_than_the_encoders_is_refused(
    make_encoder: Callable[[str], Path], make_data: MakeData
) -> None:
    data = make_data(head_of("single_label"), max_tokens=129)
    with pytest.raises(PtrainError, match="max_tokens of a task is 129, the encoder takes 128"):
        SharedEncoder(SharedEncoderSettings(encoder=str(make_encoder("bert"))), data)


def test_a_width_that_the_attention_heads_do_not_divide_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(PtrainError, match="hidden_size is 16, which 3"):
        make_model(head_of("tokens"), num_heads=3)


def test_data_without_a_task_and_heads_of_one_name_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(PtrainError, match="no task"):
        make_model()
    with pytest.raises(PtrainError, match="two heads tokens/answer"):
        make_model(head_of("tokens"), head_of("relation", task="tokens"))


# ------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_trains_one_task_of_each_kind(
    kind: str, make_model: MakeModel, tmp_path: Path
) -> None:
    batches = [batch_of(kind) for _ in range(3)]
    result = plugin_trainer.fit(
        make_model(head_of(kind), initializer_range=0.2),
        batches,
        batches,
        out=tmp_path / "run",
        length="20 epochs",
        evaluate="20 epochs",
        optimizer={"learning_rate": 5e-3},
        callbacks=["-progress_bar"],
    )
    first = plugin_trainer.fit(
        make_model(head_of(kind), initializer_range=0.2),
        batches,
        batches,
        out=tmp_path / "short",
        length="1 steps",
        callbacks=["-progress_bar"],
    )
    assert result.metrics["val/loss"] < 0.7 * first.metrics["val/loss"]
