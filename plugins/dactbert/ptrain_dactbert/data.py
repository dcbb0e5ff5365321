"""Labelled texts or pairs of texts, wherever they come from, as batches of token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import Columns
from plugin_trainer.data.texts.labels import Labels, label_names
from plugin_trainer.data.texts.loaders import loader
from plugin_trainer.data.texts.reading import READERS, Row, check_pairs, read_rows
from plugin_trainer.data.texts.sources import Place, Reader, all_labels_known
from plugin_trainer.data.texts.tokenized import Padding, TokenizedTexts, tokenize
from plugin_trainer.data.texts.tokenizers import (
    pretrained_tokenizer,
    saved_tokenizer,
    trained_tokenizer,
)
from plugin_trainer.errors import DataError
from ptrain_dactbert.settings import TextClassificationSettings
from ptrain_dactbert.splits import Sources
from ptrain_dactbert.streaming import StreamedBatches

LABELS_FILE = "labels.json"

Batch = Mapping[str, Any]


class TextClassification:
    """Texts, or pairs of texts, with one label each.

    tokenizer    what cuts texts into tokens; a Hugging Face fast tokenizer
    label_names  the labels in the order of their numbers
    max_tokens   how many tokens of a text, or of both texts of a pair, are read
    pairs        whether each row has two texts

    Everything but a stream is read and tokenised when the module is made, so that a broken line in
    the last file is found before the first step.
    """

    def __init__(
        self,
        settings: TextClassificationSettings,
        *,
        tokenizer: Any = None,
        labels: Sequence[str] | None = None,
        pairs: bool = False,
    ) -> None:
        self.settings = settings
        self.max_tokens = settings.max_tokens
        self._sources = Sources(settings)
        self._splits: dict[str, TokenizedTexts] = {}
        if tokenizer is not None and labels is not None:
            self.tokenizer, self.labels, self.pairs = tokenizer, Labels(tuple(labels)), pairs
            return  # from a run's assets: its files are read only if they are asked for
        source = self._sources.needed("train")
        check_labels(settings.labels)
        if settings.streaming:
            self.labels = Labels(all_labels_known(source, settings.labels))
            reader = source.reader(None, epoch=0, known_labels=self.labels.names)
            rows = list(islice(reader, settings.shuffle_buffer))
            if not rows:
                raise DataError(f"data_settings.train: {source.where} holds no row of data")
        else:
            rows = source.rows(known_labels=settings.labels)
            declared = settings.labels or source.label_names
            self.labels = Labels(
                declared
                or label_names(
                    [row.label for row in rows], path=source.where, column=settings.label
                )
            )
        self.pairs = any(row.text_pair is not None for row in rows)
        if settings.tokenizer:
            self.tokenizer = pretrained_tokenizer(settings.tokenizer)
        else:
            self.tokenizer = trained_tokenizer(
                (text for row in rows for text in (row.text, row.text_pair) if text is not None),
                vocabulary_size=settings.vocabulary_size,
                pairs=self.pairs,
            )
        if settings.streaming:
            self._encode(rows[: settings.batch_size], where=source.where)
        else:
            self._splits["train"] = self._encode(rows, where=source.where)
        for split in ("validation", "test"):
            if self._sources.of(split) is not None:
                self._split(split)

    @classmethod
    def from_assets(cls, settings: TextClassificationSettings, folder: Path) -> TextClassification:
        """The same module from a run's assets: its tokenizer and labels, not those of the files."""
        task = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
        return cls(
            settings,
            tokenizer=saved_tokenizer(folder / "tokenizer"),
            labels=task["labels"],
            pairs=task.get("pairs", False),
        )

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer and the label names, and whether it is a task of pairs."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        task: dict[str, Any] = {"labels": self.labels.names}
        if self.pairs:
            task["pairs"] = True
        text = json.dumps(task, ensure_ascii=False, indent=2)
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

    def train(self) -> DataLoader[Any] | StreamedBatches:
        """The training part, shuffled."""
        if self.settings.streaming:
            return self._stream()
        return self._loader(self._split("train"), shuffle=True)

    def validation(self) -> DataLoader[Any] | None:
        """The validation part, or None if there is none."""
        return self._evaluated("validation")

    def test(self) -> DataLoader[Any] | None:
        """The test part, or None if there is none."""
        return self._evaluated("test")

    def predict(self, lines: Sequence[str]) -> Iterator[Batch]:
        """Batches without labels, sorted by length: there is less padding, and rows that leave
        early share batches with their like. `line` says which line each row is.

        A line is a text, or two with a tab between them if the run was trained on pairs. Raises
        DataError for lines without one.
        """
        texts = [line.rstrip("\r\n") for line in lines]
        if not texts:
            return
        firsts, seconds = texts, None
        if self.pairs:
            # Lines may come as a part of a file that knows where it begins.
            firsts, seconds = split_pairs(texts, first_line=getattr(lines, "first_line", 1))
        tokenized = tokenize(
            firsts, tokenizer=self.tokenizer, max_tokens=self.max_tokens, text_pairs=seconds
        )
        by_length = Subset(tokenized, tokenized.lengths().argsort(stable=True).tolist())
        for batch in self._loader(by_length):
            yield {**batch, "line": batch["row"]}

    def read_table(self, path: Path) -> list[tuple[int, str]] | None:
        """The texts of a .csv, .tsv or .jsonl file, each with its line; labels are not looked at.

        They are in the columns that the run was trained on. None for a file of another kind.
        Raises DataError for rows without a text.
        """
        if path.suffix not in READERS or not path.is_file():
            return None
        settings = self.settings
        pair = settings.text_pair if self.pairs else ""
        columns = Columns(settings.text, "", "", pair)
        rows = read_rows(path, key="INPUT", columns=columns, header=settings.header)
        texts = ("\t".join(filter(None, (row.text, row.text_pair))) for row in rows)
        return list(zip((row.line for row in rows), texts, strict=True))

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
        sizes = [f"{len(texts)} {split}" for split, texts in self._splits.items()]
        rows = ", ".join(["streamed train", *sizes] if self.settings.streaming else sizes)
        pairs = " pairs" if self.pairs else ""
        return shorten(
            f"{rows}{pairs}; labels {', '.join(self.label_names)}", width=70, placeholder=" ..."
        )

    def metrics(self) -> dict[str, Metric]:
        """Accuracy over the rows, and F1 averaged over the labels."""
        return {
            "accuracy": MulticlassAccuracy(num_classes=self.num_labels, average="micro"),
            "f1": MulticlassF1Score(num_classes=self.num_labels, average="macro"),
        }

    # ------------------------------------------------------------------------------- inside

    def _evaluated(self, split: str) -> DataLoader[Any] | None:
        return None if self._sources.of(split) is None else self._loader(self._split(split))

    def _split(self, split: str) -> TokenizedTexts:
        """A split, read and tokenised once."""
        if split not in self._splits:
            source = self._sources.needed(split)
            rows = source.rows(known_labels=self.labels.names)
            self._splits[split] = self._encode(rows, where=source.where)
        return self._splits[split]

    def _encode(self, rows: Sequence[Row], *, where: str) -> TokenizedTexts:
        check_pairs(rows, pairs=self.pairs, where=where)
        return tokenize_rows(
            rows,
            tokenizer=self.tokenizer,
            max_tokens=self.max_tokens,
            labels=self.labels.numbers(rows, path=where),
        )

    def _stream(self) -> StreamedBatches:
        settings, source = self.settings, self._sources.needed("train")
        if settings.num_workers:
            raise DataError(
                f"data_settings.num_workers is {settings.num_workers}, and a stream is read by the "
                "main process",
                hint="set data_settings.num_workers to 0: the tokenizer has threads of its own",
            )
        if settings.bucketed:
            raise DataError(
                "data_settings.bucketed is set, and a stream is not sorted by length",
                hint="set data_settings.bucketed to false",
            )

        def open_reader(place: Place | None, epoch: int) -> Reader:
            return source.reader(place, epoch=epoch, known_labels=self.labels.names)

        def collate(rows: Sequence[Row]) -> dict[str, Any]:
            texts = self._encode(rows, where=source.where)
            batch = Padding(self.pad_id)([texts[number] for number in range(len(texts))])
            del batch["row"]  # it would count within the batch: a stream has no numbers of rows
            return {**batch, "line": torch.tensor([row.line for row in rows])}

        return StreamedBatches(
            open_reader,
            collate=collate,
            batch_size=settings.batch_size,
            block_size=settings.shuffle_buffer,
            seed=settings.seed,
        )

    def _loader(self, texts: Dataset[dict[str, Any]], *, shuffle: bool = False) -> DataLoader[Any]:
        settings = self.settings
        return loader(
            texts,
            padding=Padding(self.pad_id),
            batch_size=settings.batch_size if shuffle else settings.evaluation_batch_size,
            shuffle=shuffle,
            bucketed=settings.bucketed and shuffle,
            seed=settings.seed,
            num_workers=settings.num_workers,
        )


def tokenize_rows(
    rows: Sequence[Row], *, tokenizer: Any, max_tokens: int, labels: Sequence[int]
) -> TokenizedTexts:
    """Labelled rows as a data set; they are all pairs or all single texts."""
    per_row = {"labels": torch.tensor(labels)}
    if all(row.difficulty >= 0 for row in rows):
        per_row["difficulty"] = torch.tensor([row.difficulty for row in rows])
    pairs = [row.text_pair for row in rows if row.text_pair is not None]
    return tokenize(
        [row.text for row in rows],
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        text_pairs=pairs or None,
        per_row=per_row,
    )


def check_labels(names: Sequence[str]) -> None:
    """Refuse a list of labels in the settings that is no choice."""
    if names and len(set(names)) < max(2, len(names)):
        raise DataError(
            f"data_settings.labels is {', '.join(names)}",
            hint="list two labels or more, each once",
        )


def split_pairs(lines: Sequence[str], *, first_line: int) -> tuple[list[str], list[str]]:
    """The first and the second text of each line; DataError for lines that are not two texts."""
    broken = BrokenRows("the input")
    texts = []
    for number, line in enumerate(lines, start=first_line):
        fields = line.split("\t")
        if len(fields) != 2:
            count = "no tab" if len(fields) == 1 else f"{len(fields) - 1} tabs"
            broken.add(
                DataError(
                    f"line {number}: {count} in {shorten(line, width=40, placeholder=' ...')!r}",
                    hint="the run was trained on pairs: a line is first<TAB>second",
                )
            )
        texts.append((fields[0], fields[-1]))
    broken.check()
    return [first for first, _ in texts], [second for _, second in texts]
