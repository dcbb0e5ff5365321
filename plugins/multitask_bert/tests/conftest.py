"""What the tests share: tiny encoders in Hugging Face format, and what a model is told of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.heads import MARKS, Head
from ptrain_multitask_bert.model import SharedEncoder
from ptrain_multitask_bert.settings import SharedEncoderSettings
from transformers import AutoModel as TransformersModel
from transformers import BertConfig, DistilBertConfig, PretrainedConfig, RobertaConfig

from plugin_trainer.data.texts.tokenizers import trained_tokenizer

TEXTS = ("maria of acme met jonas in new haven", "the soup is not bad", "a warm and funny film")
NUM_BLOCKS = 2


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def tiny_config(kind: str, *, vocab_size: int) -> PretrainedConfig:
    """Two blocks, 16 wide, of an architecture."""
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=vocab_size,
            dim=16,
            n_layers=NUM_BLOCKS,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=128,
        )
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
    }
    if kind == "roberta":
        return RobertaConfig(**sizes, type_vocab_size=1, pad_token_id=0)
    return BertConfig(**sizes)


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[[str], Path]:
    """Save a tiny random encoder of an architecture with a tokenizer, and return its folder."""

    def save(kind: str) -> Path:
        folder = tmp_path / kind
        tokenizer = trained_tokenizer(TEXTS, vocabulary_size=300)
        config = tiny_config(kind, vocab_size=len(tokenizer))
        TransformersModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@dataclass
class Described:
    """What a model is told of data: heads and a tokenizer."""

    tokenizer: Any
    given: Sequence[Head]
    max_tokens: int = 32

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token id that fills up a batch."""
        return int(self.tokenizer.pad_token_id)

    def heads(self) -> Sequence[Head]:
        """The heads of all tasks."""
        return self.given


@pytest.fixture
def make_data() -> Callable[..., Described]:
    """Describe data with these heads; its tokenizer knows the marks of relations, or does not."""

    def describe(*heads: Head, marked: bool = True, **changes: Any) -> Described:
        tokenizer = trained_tokenizer(TEXTS, vocabulary_size=300)
        if marked:
            tokenizer.add_tokens(list(MARKS), special_tokens=True)
        return Described(tokenizer, heads, **changes)

    return describe


@pytest.fixture
def make_model(make_data: Callable[..., Described]) -> Callable[..., SharedEncoder]:
    """A small model from scratch with these heads, its settings changed as asked."""

    def build(*heads: Head, **changes: Any) -> SharedEncoder:
        sizes = {"hidden_size": 16, "num_blocks": NUM_BLOCKS, "num_heads": 2, "max_positions": 40}
        settings = SharedEncoderSettings(**(sizes | changes))
        return SharedEncoder(settings, make_data(*heads))

    return build
