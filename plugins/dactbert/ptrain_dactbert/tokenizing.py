"""Texts become token ids once, before training; a batch is padded to its own longest text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from plugin_trainer.errors import PtrainError
from ptrain_dactbert import encoder as encoders
from ptrain_dactbert.reading import Row

# B rows, T tokens

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer in a folder or on the Hub."""
    key = "data_settings.tokenizer (left out, it is model_settings.encoder)"
    source = encoders.locate(name, key=key)
    with encoders.reading(name, key=key, what="tokenizer") as options:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        raise PtrainError(
            f"{key}: the tokenizer in {name} has no padding token",
            hint="give the tokenizer of a BERT-family encoder",
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
    with encoders.quiet_transformers():
        return AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class TokenizedTexts(Dataset[dict[str, Any]]):  # type: ignore[misc]
    """All texts of a split as one run of token ids, so that worker processes share a few arrays.

    ids          the token ids of all texts, one after the other
    starts       where each text begins in them, and where the last one ends
    segments     the token type of each id, if the tokenizer gives them
    labels       the label of each text, or None in prediction
    difficulty   the difficulty of each text, or None if it is not known
    """

    ids: Tensor
    starts: Tensor
    segments: Tensor | None
    labels: Tensor | None
    difficulty: Tensor | None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens = slice(int(self.starts[row]), int(self.starts[row + 1]))
        item: dict[str, Any] = {"input_ids": self.ids[tokens], "row": row}
        if self.segments is not None:
            item["token_type_ids"] = self.segments[tokens]
        if self.labels is not None:
            item["labels"] = self.labels[row]
        if self.difficulty is not None:
            item["difficulty"] = self.difficulty[row]
        return item


def tokenize(
    texts: Sequence[str],
    *,
    tokenizer: Any,
    max_tokens: int,
    text_pairs: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    difficulty: Sequence[int] | None = None,
) -> TokenizedTexts:
    """Texts, with what is known of them, as a data set.

    text_pairs  the second text of each. Of two texts that are too long together, the longer one
                is cut until they fit.
    """
    encoded: Mapping[str, list[list[int]]] = tokenizer(
        list(texts),
        None if text_pairs is None else list(text_pairs),
        truncation="longest_first",
        max_length=max_tokens,
        return_attention_mask=False,
    )
    ids, segments, starts = array("q"), array("q"), array("q", [0])
    typed = encoded.get("token_type_ids")
    for row, tokens in enumerate(encoded["input_ids"]):
        # Attention over no token at all is a division by zero.
        ids.extend(tokens or [tokenizer.pad_token_id])
        segments.extend((typed[row] if typed else []) or [0] * max(1, len(tokens)))
        starts.append(len(ids))
    return TokenizedTexts(
        ids=torch.tensor(ids),
        starts=torch.tensor(starts),
        segments=torch.tensor(segments) if typed else None,
        labels=None if labels is None else torch.tensor(labels),
        difficulty=None if difficulty is None else torch.tensor(difficulty),
    )


def tokenize_rows(
    rows: Sequence[Row], *, tokenizer: Any, max_tokens: int, labels: Sequence[int]
) -> TokenizedTexts:
    """Labelled rows as a data set; they are all pairs or all single texts."""
    graded = all(row.difficulty >= 0 for row in rows)
    pairs = [row.text_pair for row in rows if row.text_pair is not None]
    return tokenize(
        [row.text for row in rows],
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        text_pairs=pairs or None,
        labels=labels,
        difficulty=[row.difficulty for row in rows] if graded else None,
    )


@dataclass(frozen=True)
class Padding:
    """Puts rows of different lengths into one batch. A class, not a closure: workers pickle it."""

    pad_id: int

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One tensor per key: [B, T] for what has a value per token, [B] for the rest."""
        lengths_B = torch.tensor([len(item["input_ids"]) for item in items])
        positions_T = torch.arange(int(lengths_B.max()))
        batch = {"attention_mask": (positions_T < lengths_B.unsqueeze(-1)).long()}
        for key in items[0]:
            values = [item[key] for item in items]
            if key in ("input_ids", "token_type_ids"):
                batch[key] = torch.nn.utils.rnn.pad_sequence(
                    values, batch_first=True, padding_value=self.pad_id if key == "input_ids" else 0
                )
            else:
                batch[key] = torch.tensor([int(value) for value in values])
        return batch
