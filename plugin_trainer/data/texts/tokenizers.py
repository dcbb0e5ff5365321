"""A tokenizer comes from a folder, the Hub, or is trained on the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from plugin_trainer.data.texts.pretrained import locate, quiet_transformers, reading
from plugin_trainer.errors import PtrainError

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer in a folder or on the Hub."""
    key = "data_settings.tokenizer (left out, it is model_settings.encoder)"
    source = locate(name, key=key)
    with reading(name, key=key, what="tokenizer") as options:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
    return _with_padding(tokenizer, named=f"{key}: the tokenizer in {name}")


def _with_padding(tokenizer: Any, *, named: str) -> Any:
    if tokenizer.pad_token_id is None:
        raise PtrainError(
            f"{named} has no padding token", hint="give the tokenizer of a BERT-family encoder"
        )
    return tokenizer


def trained_tokenizer(texts: Iterable[str], *, vocabulary_size: int, pairs: bool = False) -> Any:
    """A lower-casing byte-level BPE tokenizer that knows the pieces of these texts.

    pairs  it also joins two texts, "[CLS] first [SEP] second [SEP]", and tells them apart by type
    """
    # Not WordPiece: its trainer breaks ties by hash order, another vocabulary in every process.
    pieces = Tokenizer(models.BPE())
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    pieces.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
    )
    pieces.train_from_iterator(texts, trainer=trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if pairs else None,
        special_tokens=[(name, pieces.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    wrapped_in: Any = PreTrainedTokenizerFast
    types = ["token_type_ids"] if pairs else []
    return wrapped_in(
        tokenizer_object=pieces,
        model_input_names=["input_ids", *types, "attention_mask"],
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    )


def saved_tokenizer(folder: Path) -> Any:
    """The tokenizer that `save_pretrained` wrote there."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return _with_padding(tokenizer, named=f"the tokenizer in {folder}")
