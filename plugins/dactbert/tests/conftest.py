"""What the tests share: files of texts, and tiny encoders in Hugging Face format."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_dactbert.classifier import HaltingClassifier
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import ClassifierSettings, TextClassificationSettings
from transformers import AutoModel as TransformersModel
from transformers import BertConfig, DistilBertConfig, RobertaConfig

from plugin_trainer.cli.main import main
from plugin_trainer.data.texts.tokenizers import trained_tokenizer

TEXTS = (
    ("a warm and funny film", "1"),
    ("dull", "0"),
    ("the plot goes nowhere and the camera follows it there", "0"),
    ("honest , clever and moving", "1"),
    ("i laughed once", "0"),
    ("i laughed all the way home and the day after", "1"),
)
NUM_BLOCKS = 3


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file and return its path: lines as text, or bytes as they are."""

    def to_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


@pytest.fixture
def train_file(write: Callable[..., Path]) -> Path:
    """Six labelled texts of different lengths, as TSV without a header."""
    return write("train.tsv", "".join(f"{text}\t{label}\n" for text, label in TEXTS))


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[[str], Path]:
    """Save a tiny random encoder of an architecture with a tokenizer, and return its folder."""

    def save(kind: str) -> Path:
        folder = tmp_path / kind
        tokenizer = trained_tokenizer([text for text, _ in TEXTS], vocabulary_size=300)
        config = TINY[kind](vocab_size=len(tokenizer))
        TransformersModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def tiny_bert(vocab_size: int) -> BertConfig:
    """Three blocks of BERT, 16 wide."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )


def tiny_distilbert(vocab_size: int) -> DistilBertConfig:
    """Three blocks of DistilBERT, 16 wide."""
    return DistilBertConfig(
        vocab_size=vocab_size,
        dim=16,
        n_layers=NUM_BLOCKS,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
    )


def tiny_roberta(vocab_size: int) -> RobertaConfig:
    """Three blocks of RoBERTa, 16 wide."""
    return RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=0,
    )


TINY: Mapping[str, Callable[..., Any]] = {
    "bert": tiny_bert,
    "distilbert": tiny_distilbert,
    "roberta": tiny_roberta,
}


@pytest.fixture
def make_data(train_file: Path) -> Callable[..., TextClassification]:
    """The data module over the six texts, its settings changed as asked."""

    def build(**changes: Any) -> TextClassification:
        settings = {"train": str(train_file), "max_tokens": 32, "batch_size": 6} | changes
        return TextClassification(TextClassificationSettings(**settings))

    return build


@pytest.fixture
def make_model(
    make_data: Callable[..., TextClassification],
) -> Callable[..., HaltingClassifier]:
    """A small classifier from scratch over the six texts, its settings changed as asked."""

    def build(data: Any = None, **changes: Any) -> HaltingClassifier:
        sizes = {"hidden_size": 16, "num_blocks": NUM_BLOCKS, "num_heads": 2, "max_positions": 40}
        return HaltingClassifier(ClassifierSettings(**(sizes | changes)), data or make_data())

    return build


@pytest.fixture
def batch(make_data: Callable[..., TextClassification]) -> dict[str, Any]:
    """The six texts as one batch."""
    return next(iter(make_data().train()))


@pytest.fixture
def negation_data() -> TextClassification:
    """A small generated data set."""
    settings = TextClassificationSettings(examples=100, validation_examples=75, max_tokens=16)
    return TextClassification(settings)


@pytest.fixture
def jsonl(write: Callable[..., Path]) -> Callable[..., Path]:
    """Write objects as a .jsonl file."""

    def to_file(name: str, *objects: Mapping[str, Any]) -> Path:
        return write(name, "".join(json.dumps(one) + "\n" for one in objects))

    return to_file


EXITS_SETTINGS: Mapping[str, Any] = {
    "length": "60 steps",
    "evaluate": "60 steps",
    "save": "60 steps",
    "callbacks": '["early_exit", "-progress_bar", "-tensorboard"]',
    "model_settings.hidden_size": 32,
    "model_settings.num_blocks": NUM_BLOCKS,
    "model_settings.num_heads": 2,
    "model_settings.initializer_range": 0.1,
    "optimizer.learning_rate": 2e-3,
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def exits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run by the recipe dactbert/exits: is a text more good than bad?"""
    folder, luck = tmp_path_factory.mktemp("exits"), random.Random(0)
    words = ("good", "fine", "bad", "poor", "a", "the", "film")
    for split, rows in (("train", 2000), ("validation", 400)):
        texts = [luck.choices(words, k=luck.choice([3, 5, 9])) for _ in range(rows)]
        good = [sum((w in words[:2]) - (w in words[2:4]) for w in text) > 0 for text in texts]
        lines = [f"{' '.join(text)}\t{int(y)}\n" for text, y in zip(texts, good, strict=True)]
        (folder / f"{split}.tsv").write_text("".join(lines))
    settings = dict(EXITS_SETTINGS) | {
        f"data_settings.{split}": folder / f"{split}.tsv" for split in ("train", "validation")
    }
    arguments = [f"--set={key}={value}" for key, value in settings.items()]
    assert main(["run", "dactbert/exits", *arguments, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def exported(exits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as ONNX segments in float32; they leave at 1 %."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["models", "export", str(exits_run), str(folder), "--format", "onnx"]) == 0
    return folder


@pytest.fixture(scope="session")
def texts(exits_run: Path) -> list[str]:
    """Its validation texts, an empty one, and one of more tokens than the run reads."""
    lines = (exits_run.parent / "validation.tsv").read_text().splitlines()
    return [*(line.partition("\t")[0] for line in lines), "", "good " * 200]
