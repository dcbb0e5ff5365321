"""Labelled texts, from files or generated, as batches of token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from plugin_trainer.errors import DataError
from ptrain_dactbert import negation
from ptrain_dactbert.labels import Labels, label_names
from ptrain_dactbert.reading import Columns, Row, read_rows, suggestion
from ptrain_dactbert.settings import TextClassificationSettings
from ptrain_dactbert.tokenizing import (
    Padding,
    TokenizedTexts,
    pretrained_tokenizer,
    saved_tokenizer,
    tokenize,
    trained_tokenizer,
)

BUILTIN = "builtin:"
LABELS_FILE = "labels.json"

Batch = Mapping[str, Any]


class TextClassification:
    """Texts with one label each.

    tokenizer    what cuts texts into tokens; a Hugging Face fast tokenizer
    label_names  the labels in the order of their numbers
    max_tokens   how many tokens of a text are read

    Everything is read and tokenised when the module is made, so that a broken line in the last file
    is found before the first step.
    """

    def __init__(
        self,
        settings: TextClassificationSettings,
        *,
        tokenizer: Any = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.settings = settings
        self.max_tokens = settings.max_tokens
        self._splits: dict[str, TokenizedTexts] = {}
        if tokenizer is not None and labels is not None:
            self.tokenizer, self.labels = tokenizer, Labels(tuple(labels))
            return  # from a run's assets: its files are read only if they are asked for
        rows = self._read("train")
        self.labels = Labels(self._names(rows))
        if settings.tokenizer:
            self.tokenizer = pretrained_tokenizer(settings.tokenizer)
        else:
            self.tokenizer = trained_tokenizer(
                [row.text for row in rows], vocabulary_size=settings.vocabulary_size
            )
        self._splits["train"] = self._tokenize(rows, split="train")
        for split in ("validation", "test"):
            if self._source(split):
                self._split(split)

    @classmethod
    def from_assets(cls, settings: TextClassificationSettings, folder: Path) -> TextClassification:
        """The same module from a run's assets: its tokenizer and labels, not those of the files."""
        labels = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))["labels"]
        return cls(settings, tokenizer=saved_tokenizer(folder / "tokenizer"), labels=labels)

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer and the label names."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        text = json.dumps({"labels": self.labels.names}, ensure_ascii=False, indent=2)
        (folder / LABELS_FILE).write_text(text + "\n", encoding="utf-8")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of their numbers."""
        return self.labels.names

    @property
    def num_labels(self) -> int:
        """How many labels there are."""
        return len(self.labels.names)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token id that fills up a batch."""
        pad_id: int = self.tokenizer.pad_token_id
        return pad_id

    def train(self) -> DataLoader[Any]:
        """The training part, shuffled."""
        return self._loader(self._split("train"), shuffle=True)

    def validation(self) -> DataLoader[Any] | None:
        """The validation part, or None if there is none."""
        return self._loader(self._split("validation")) if self._source("validation") else None

    def test(self) -> DataLoader[Any] | None:
        """The test part, or None if there is none."""
        return self._loader(self._split("test")) if self._source("test") else None

    def predict(self, lines: Sequence[str]) -> Iterator[Batch]:
        """Batches without labels, in the order of the lines."""
        texts = [line.rstrip("\r\n") for line in lines]
        if texts:
            yield from self._loader(
                tokenize(texts, tokenizer=self.tokenizer, max_tokens=self.max_tokens)
            )

    def decode(self, outputs: Mapping[str, Any], batch: Batch) -> list[dict[str, Any]]:
        """Label, probabilities and exit block of each row of a predicted batch."""
        del batch
        probabilities = torch.softmax(outputs["logits"].float(), dim=-1).tolist()
        blocks = outputs["exit_block"].tolist() if "exit_block" in outputs else None
        decoded = []
        for row, values in enumerate(probabilities):
            named = dict(zip(self.label_names, values, strict=True))
            one: dict[str, Any] = {"label": max(named, key=named.__getitem__)}
            one["probabilities"] = named
            if blocks is not None:
                one["exit_block"] = blocks[row]
            decoded.append(one)
        return decoded

    def describe(self) -> str:
        """How many rows each split has, and the labels, as far as they fit a line."""
        rows = ", ".join(f"{len(texts)} {split}" for split, texts in self._splits.items())
        return shorten(
            f"{rows}; labels {', '.join(self.label_names)}", width=70, placeholder=" ..."
        )

    def metrics(self) -> dict[str, Metric]:
        """Accuracy over the rows, and F1 averaged over the labels."""
        return {
            "accuracy": MulticlassAccuracy(num_classes=self.num_labels, average="micro"),
            "f1": MulticlassF1Score(num_classes=self.num_labels, average="macro"),
        }

    # ------------------------------------------------------------------------------- inside

    def _source(self, split: str) -> str:
        """The file or builtin task of a split; empty if it has none."""
        source: str = getattr(self.settings, split)
        if not source and split == "validation" and self.settings.train.startswith(BUILTIN):
            return self.settings.train
        return source

    def _names(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """The label names: those of the settings, else of the builtin task, else of the file."""
        if names := self.settings.labels:
            if len(set(names)) < max(2, len(names)):
                raise DataError(
                    f"data_settings.labels is {', '.join(names)}",
                    hint="list two labels or more, each once",
                )
            return names
        if self.settings.train.startswith(BUILTIN):
            return negation.LABELS
        return label_names(rows, path=Path(self.settings.train))

    def _read(self, split: str) -> list[Row]:
        """The rows of a split."""
        source, settings = self._source(split), self.settings
        key = f"data_settings.{split}"
        if not source:
            raise DataError(f"{key} is not set", hint="give a .tsv, .csv or .jsonl file")
        if source.startswith(BUILTIN):
            if source != BUILTIN + negation.NAME:
                known = BUILTIN + negation.NAME
                raise DataError(
                    f"{key}: there is no {source}{suggestion(source, known=[known])}",
                    hint=f"generated tasks: {known}",
                )
            size = settings.examples if split == "train" else settings.validation_examples
            return negation.rows(size, split=split, seed=settings.seed)
        columns = Columns(settings.text, settings.label, settings.difficulty)
        path = Path(source).expanduser()
        return read_rows(path, key=key, columns=columns, header=settings.header)

    def _split(self, split: str) -> TokenizedTexts:
        """A split, read and tokenised once."""
        if split not in self._splits:
            self._splits[split] = self._tokenize(self._read(split), split=split)
        return self._splits[split]

    def _tokenize(self, rows: Sequence[Row], *, split: str) -> TokenizedTexts:
        graded = all(row.difficulty >= 0 for row in rows)
        return tokenize(
            [row.text for row in rows],
            tokenizer=self.tokenizer,
            max_tokens=self.max_tokens,
            labels=self.labels.numbers(rows, path=Path(self._source(split))),
            difficulty=[row.difficulty for row in rows] if graded else None,
        )

    def _loader(self, texts: TokenizedTexts, *, shuffle: bool = False) -> DataLoader[Any]:
        settings = self.settings
        if settings.num_workers:
            # The tokenizer's threads are done; left unset, it warns of every worker that forks.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            texts,
            batch_size=settings.batch_size if shuffle else settings.evaluation_batch_size,
            shuffle=shuffle,
            num_workers=settings.num_workers,
            collate_fn=Padding(self.pad_id),
        )
