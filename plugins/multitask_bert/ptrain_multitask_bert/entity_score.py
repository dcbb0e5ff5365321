"""Precision, recall and F1 of whole entities: an entity is right if its type and both ends are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from plugin_trainer.data.batches import IGNORED_LABEL

# B sentences, T tokens, C tags, W words of all sentences, N entities

Which = Literal["precision", "recall", "f1"]


class EntityScore(Metric):  # type: ignore[misc]
    """A score of entities over all batches, as seqeval and conlleval compute it.

    Entities of all types count alike (micro). Tokens labelled -100 are no words: they are left out
    before entities are looked for, whatever stands on both sides of them. An I- that goes on with
    nothing begins an entity.

    labels  the BIO tags in the order of their numbers
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    found: Tensor
    there: Tensor

    def __init__(self, labels: Sequence[str], which: Which) -> None:
        super().__init__()
        self.which = which
        kinds = sorted({tag.partition("-")[2] for tag in labels} - {""})
        self._kind_of = torch.tensor([kinds.index(tag[2:]) + 1 if tag[2:] else 0 for tag in labels])
        self._begins = torch.tensor([tag.startswith("B-") for tag in labels])
        for state in ("right", "found", "there"):
            self.add_state(state, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_BTC: Tensor, labels_BT: Tensor) -> None:
        """Take in the sentences of one batch."""
        word_BT = labels_BT != IGNORED_LABEL
        sentence_W = word_BT.nonzero()[:, 0]
        there = self._entities(labels_BT[word_BT], sentence_W)
        found = self._entities(logits_BTC.argmax(dim=-1)[word_BT], sentence_W)
        self.there += there.numel()
        self.found += found.numel()
        self.right += torch.isin(found, there, assume_unique=True).sum()

    def compute(self) -> Tensor:
        """The score; 0 where it would be a division by zero."""
        divisor = {
            "precision": self.found,
            "recall": self.there,
            "f1": (self.found + self.there) / 2,
        }[self.which]
        return torch.where(divisor > 0, self.right / divisor.clamp(min=1e-9), 0.0)

    def _entities(self, tags_W: Tensor, sentence_W: Tensor) -> Tensor:
        """One number for each entity, [N]: equal numbers mean equal type, first and last word."""
        device = tags_W.device
        kind_W = self._kind_of.to(device)[tags_W]
        inside_W = kind_W > 0
        # Whether a word is of the same sentence and type as the one before it.
        goes_on_W = torch.zeros_like(inside_W)
        goes_on_W[1:] = (sentence_W[1:] == sentence_W[:-1]) & (kind_W[1:] == kind_W[:-1])
        starts_W = inside_W & (self._begins.to(device)[tags_W] | ~goes_on_W)
        # A word is the last of its entity unless the next one goes on with it.
        next_goes_on_W = torch.zeros_like(inside_W)
        next_goes_on_W[:-1] = (inside_W & ~starts_W)[1:]
        first_N = starts_W.nonzero()[:, 0]
        last_N = (inside_W & ~next_goes_on_W).nonzero()[:, 0]
        words, kinds = len(tags_W), len(self._kind_of)
        return (first_N * words + last_N) * kinds + kind_W[first_N]
