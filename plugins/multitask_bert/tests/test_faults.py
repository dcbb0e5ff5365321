"""What is known to go wrong in trainers of several tasks, and of entities and relations, does not.

Each test is named after what a user would have met.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.data import MultitaskData
from ptrain_multitask_bert.generated import rows
from ptrain_multitask_bert.heads import KINDS
from ptrain_multitask_bert.model import SharedEncoder
from ptrain_multitask_bert.settings import MultitaskSettings, SharedEncoderSettings
from pydantic import TypeAdapter
from torch import Tensor, nn

import plugin_trainer
from plugin_trainer.cli.main import main
from plugin_trainer.data.batches import move_batch
from plugin_trainer.errors import DataError
from plugin_trainer.settings import OptimizerSettings
from plugin_trainer.training.optim.optimizers import build_optimizer

Build = Callable[..., Any]

TINY = {
    "hidden_size": 16,
    "num_blocks": 1,
    "num_heads": 2,
    "initializer_range": 0.3,
    "dropout": 0.0,
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A file of every kind of task, in a folder."""
    texts = [
        {
            "text": record["text"],
            "tone": record["label"],
            "words": [word for word in ("soup", "staff", "is") if word in record["text"]],
            "length": len(record["text"]) / 50,
        }
        for record in rows("sentiment", split="train", size=48, seed=0)
    ]
    write_lines(tmp_path / "mail.jsonl", texts)
    write_lines(tmp_path / "names.jsonl", rows("entities", split="train", size=48, seed=0))
    write_lines(tmp_path / "pairs.jsonl", rows("relations", split="train", size=48, seed=0))
    return tmp_path


def write_lines(path: Path, records: Any) -> None:
    path.write_text("".join(json.dumps(dict(record)) + "\n" for record in records))


@pytest.fixture
def settings(files: Path) -> dict[str, Any]:
    """Tasks with a head of every kind, none of them with the name that it has by default."""
    return {
        "batch_size": 16,
        "vocabulary_size": 400,
        "tasks": {
            "f1": {
                "train": f"{files}/mail.jsonl",
                "validation": "last 16",
                "heads": {
                    "tone": {"kind": "single_label"},
                    "words": {"kind": "multi_label", "threshold": 0.5},
                    "length": {"kind": "regression"},
                },
            },
            "news": {
                "kind": "entities",
                "train": f"{files}/names.jsonl",
                "validation": "last 16",
                "heads": {"spans": {}},
            },
            "graph": {
                "kind": "relations",
                "train": f"{files}/pairs.jsonl",
                "validation": "last 16",
                "heads": {"edge": {}},
            },
        },
    }


@pytest.fixture
def data(settings: dict[str, Any]) -> MultitaskData:
    """The data module of these tasks."""
    return MultitaskData(TypeAdapter(MultitaskSettings).validate_python(settings))


@pytest.fixture
def model(data: MultitaskData) -> SharedEncoder:
    """A small encoder with their heads."""
    return SharedEncoder(TypeAdapter(SharedEncoderSettings).validate_python(TINY), data)


@pytest.fixture
def fit(model: SharedEncoder, data: MultitaskData, tmp_path: Path) -> Build:
    """Train for some epochs on all tasks."""

    def train(**changes: Any) -> Any:
        asked = {
            "out": tmp_path / "run",
            "length": "2 epochs",
            "evaluate": "1 epoch",
            "optimizer": {"learning_rate": 5e-3},
        }
        return plugin_trainer.fit(
            model, data.train(), data.validation(), metrics=data.metrics(), **(asked | changes)
        )

    return train


# ------------------------------------------------------------------------- trainers of many tasks


@pytest.mark.parametrize("validation", [True, False])
def test_weights_are_saved_without_patience_and_without_validation(
    validation: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    run_file = tmp_path / "run.toml"
    tasks = settings["tasks"]
    lines = ['plugins = ["multitask_bert"]', 'model = "multitask_bert/shared_encoder"']
    lines += ['data = "multitask_bert/tasks"', 'length = "1 epoch"', "[model_settings]"]
    lines += [f"{key} = {value}" for key, value in TINY.items()]
    lines += ["[data_settings]", "batch_size = 16"]
    for name in ("news", "graph"):
        lines += [f"[data_settings.tasks.{name}]", f'kind = "{tasks[name]["kind"]}"']
        lines += [f'train = "{tasks[name]["train"]}"']
        lines += ['validation = "last 16"'] if validation else []
    run_file.write_text("\n".join(lines) + "\n")
    out = tmp_path / "run"
    assert main(["run", str(run_file), "--out", str(out)]) == 0
    run = plugin_trainer.load_run(out)
    assert run.checkpoint.step > 0
    assert (out / "hugging_face/last/encoder/model.safetensors").is_file()


def test_a_setting_that_nothing_would_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        *("--set", "model_settings.fusion=concat"),
        *("--set", "data_settings.tasks.sentiment.eval_strategy=no"),
    ]
    assert main(["run", "--plugin", "multitask_bert", *wrong]) == 2
    said = capsys.readouterr().err
    assert "model_settings.fusion" in said
    assert "data_settings.tasks.sentiment.eval_strategy" in said


def test_every_kind_of_head_is_trained_scored_and_asked(fit: Build, data: MultitaskData) -> None:
    result = fit()
    kinds = {head.kind: head for head in data.heads()}
    assert set(kinds) == set(KINDS)
    for head in data.heads():
        scores = [name for name in result.metrics if name.startswith(f"val/{head.address}/")]
        assert scores, head.address
    model = result.model.eval()
    lines = ["the soup is good", "<e1> maria </e1> works for <e2> acme </e2>"]
    answers: list[dict[str, Any]] = []
    for batch in data.predict(lines):
        with torch.no_grad():
            answers += data.decode(model(**batch), batch)
    assert {"tone", "words", "length"} <= answers[0]["f1"].keys()
    assert "spans" in answers[0]["news"]
    assert set(answers[1]["graph"]) == {"edge"}


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = "data_settings.tasks.sentiment.kind=single_label_classification"
    assert main(["run", "--plugin", "multitask_bert", "--set", kind]) == 2
    assert "classification" in capsys.readouterr().err


def test_entities_are_scored_under_any_head_name(fit: Build) -> None:
    metrics = fit().metrics
    assert 0 <= metrics["val/news/spans/f1"] <= 1


def test_a_threshold_is_a_probability_and_not_a_logit(data: MultitaskData) -> None:
    scores = data.metrics()["f1"]["words"]
    # sigmoid(0.3) = 0.574 is over the threshold of 0.5, though 0.3 itself is not.
    logits = torch.tensor([[0.3, -0.3, 0.3], [-0.3, 0.3, -0.3]])
    outputs = {"logits": {"words": logits}}
    batch = {"labels_words": (logits > 0).float()}
    for fed in scores.values():
        fed.metric.update(*fed.feed(outputs, batch))
    assert float(scores["recall"].metric.compute()) == 1.0
    assert float(scores["accuracy"].metric.compute()) == 1.0


def test_the_overall_score_has_the_chosen_members_whatever_tasks_are_named(fit: Build) -> None:
    metrics = fit(overall=["f1/tone/accuracy", "news/spans/f1"]).metrics
    expected = (metrics["val/f1/tone/accuracy"] + metrics["val/news/spans/f1"]) / 2
    assert metrics["val/overall"] == pytest.approx(expected)


def test_a_batch_without_a_heads_labels_leaves_that_head_where_it_is(
    model: SharedEncoder, data: MultitaskData
) -> None:
    batch = next(iter(data.train()["f1"]))
    del batch["labels_tone"]
    found = model(**batch, task="f1")
    assert isinstance(found["loss"], Tensor)
    found["loss"].backward()
    assert model.heads["f1/tone"].linear.weight.grad is None
    assert model.heads["f1/words"].linear.weight.grad is not None
    with pytest.raises(DataError, match="has no labels"):
        model(**{key: value for key, value in batch.items() if "labels" not in key}, task="f1")


def test_callbacks_see_what_the_model_answered(fit: Build) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    class Watching:
        def ptrain_evaluation_batch_end(
            self, run: Any, split: str, weights: str, batch: Any, outcome: Any
        ) -> None:
            for head, logits in outcome.outputs["logits"].items():
                seen[f"{batch['task']}/{head}"] = tuple(logits.shape[:1])

        def ptrain_step_end(self, run: Any, outcome: Any) -> None:
            assert outcome.outputs["logits"]

    fit(callbacks=[Watching()])
    assert seen.keys() == {"f1/tone", "f1/words", "f1/length", "news/spans", "graph/edge"}
    assert set(seen.values()) == {(16,)}


# -------------------------------------------------------------- trainers of entities and relations


def test_token_types_reach_the_encoder(model: SharedEncoder, data: MultitaskData) -> None:
    batch = move_batch(next(iter(data.train()["f1"])), torch.device("cpu"))
    batch.pop("token_type_ids", None)
    model.eval()
    first = model(**batch, task="f1", token_type_ids=torch.zeros_like(batch["input_ids"]))
    second = model(**batch, task="f1", token_type_ids=torch.ones_like(batch["input_ids"]))
    assert not torch.equal(first["logits"]["tone"], second["logits"]["tone"])


def test_a_batch_without_labels_is_said_with_the_keys_that_it_has(
    model: SharedEncoder, tmp_path: Path
) -> None:
    batch = {
        "task": "news",
        "input_ids": torch.ones(2, 3).long(),
        "attention_mask": torch.ones(2, 3).long(),
        "label": torch.zeros(2, 3).long(),
    }
    with pytest.raises(DataError) as caught:
        plugin_trainer.fit(model, [batch], out=tmp_path / "run", length="1 steps")
    assert "label; looked for: labels_spans" in str(caught.value)


@pytest.mark.parametrize("encoder", ["bert", "distilbert", "roberta"])
def test_no_bias_and_no_normalisation_decays_whatever_it_is_called(
    encoder: str, make_encoder: Callable[[str], Path], data: MultitaskData
) -> None:
    folder = str(make_encoder(encoder))
    # The same tasks in the tokens of the encoder.
    its_own = dataclasses.replace(data.settings, tokenizer=folder, max_tokens=100)
    shared = SharedEncoder(SharedEncoderSettings(encoder=folder), MultitaskData(its_own))
    optimizer = build_optimizer(shared, OptimizerSettings(weight_decay=0.1))
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for module in shared.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = isinstance(module, nn.LayerNorm) or name == "bias"
            assert decays[id(parameter)] == (0.0 if spared else 0.1), (module, name)


class Plain(nn.Module):  # type: ignore[misc]
    """A model that knows of no library: no loss of its own, and nothing to save itself with."""

    def __init__(self, *, vocabulary_size: int, num_labels: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary_size, num_labels)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The logits [B, C]."""
        return self.words(input_ids)


def test_a_plain_module_trains_on_the_data_too(data: MultitaskData, tmp_path: Path) -> None:
    plain = Plain(vocabulary_size=data.vocabulary_size, num_labels=5)
    assert len(data.tasks["graph"].heads[0].labels) == 5

    def loss(logits: Tensor, labels: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(logits, labels["edge"])

    result = plugin_trainer.fit(
        plain,
        data.train()["graph"],
        data.validation()["graph"],
        loss=loss,
        out=tmp_path / "run",
        length="2 epochs",
    )
    assert result.metrics["val/loss"] > 0


def test_label_names_are_saved_with_the_model(settings: dict[str, Any], tmp_path: Path) -> None:
    data = MultitaskData(TypeAdapter(MultitaskSettings).validate_python(settings))
    data.save_assets(tmp_path)
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    again = MultitaskData.from_assets(data.settings, tmp_path)
    assert again.heads() == data.heads()
    assert dict.fromkeys(again.tasks["news"].heads[0].labels).keys() >= {"B-person", "I-place"}
