"""The loader of a split: shuffled or in order, of texts as they come or of about one length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.texts.tokenized import Padding, TokenizedTexts


@dataclass(frozen=True)
class Groups(Dataset[list[dict[str, Any]]]):
    """A data set whose items are ready batches: lists of texts, which a collate then pads."""

    texts: TokenizedTexts
    groups: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> list[dict[str, Any]]:
        return [self.texts[row] for row in self.groups[number]]


def loader(
    texts: Dataset[dict[str, Any]],
    *,
    padding: Padding,
    batch_size: int,
    shuffle: bool,
    bucketed: bool,
    seed: int,
    num_workers: int,
) -> DataLoader[Any]:
    """A loader of plain torch, so that the engine can take its order over and resume exactly.

    bucketed  batches of texts of about one length; which texts are together is drawn once, and the
              order of the batches is shuffled like that of texts
    """
    if num_workers:
        # The tokenizer's threads are done; left unset, it warns of every worker that forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not bucketed:
        return DataLoader(
            texts,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=num_workers,
            collate_fn=padding,
        )
    assert isinstance(texts, TokenizedTexts)
    groups = by_length(texts, batch_size=batch_size, seed=seed)
    return DataLoader(
        Groups(texts, groups),
        batch_size=None,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=padding,
    )


def by_length(texts: TokenizedTexts, *, batch_size: int, seed: int) -> list[list[int]]:
    """All texts in groups of one size, the short ones first; drawn among texts of equal length."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "groups"))
    drawn = torch.randperm(len(texts), generator=generator)
    order = drawn[texts.lengths()[drawn].argsort(stable=True)].tolist()
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
