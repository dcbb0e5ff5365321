"""What every block answers on some rows: run once, every rule of early exit can be judged on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.errors import PtrainError

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

# N blocks that answer, B rows, T tokens, C classes

Batch = Mapping[str, Any]

_PER_TOKEN = ("input_ids", "token_type_ids")


@dataclass(frozen=True, eq=False)
class BlockLogits:
    """The answers of a run on the rows of a split, in float64.

    halting_NB  halting logits, if the units learn them
    labels_B    if every batch had them
    texts       input_ids and, if there are any, token_type_ids of each row, without padding
    sha256      of the tokens of all rows
    """

    logits_NBC: Tensor
    halting_NB: Tensor | None
    labels_B: Tensor | None
    texts: tuple[Mapping[str, Tensor], ...]
    sha256: str

    @property
    def lengths_B(self) -> Tensor:
        """How many tokens each row has."""
        return torch.tensor([len(text["input_ids"]) for text in self.texts])


def collect(loaded: LoadedRun, batches: Iterable[Batch], *, if_empty: str) -> BlockLogits:
    """Run all blocks on every batch. Raises PtrainError, with that hint, if there is none."""
    model: Any = loaded.model
    logits, halting, labels, texts = [], [], [], []
    digest = hashlib.sha256()
    for batch in batches:
        for text in _rows_of(batch):
            texts.append(text)
            digest.update(text["input_ids"].numpy().tobytes() + b"\n")
        moved = loaded.hooks.move_batch(run=loaded, batch=batch, device=loaded.device)
        with torch.inference_mode(), loaded.precision.autocast():
            logits_NBC, halting_NB = model.block_logits(
                input_ids=moved["input_ids"],
                attention_mask=moved["attention_mask"],
                token_type_ids=moved.get("token_type_ids"),
            )
        logits.append(logits_NBC.cpu().double())
        halting += [halting_NB.cpu().double()] if halting_NB is not None else []
        labels += [batch["labels"].cpu()] if "labels" in batch else []
    if not texts:
        raise PtrainError("there are no rows to run the blocks on", hint=if_empty)
    return BlockLogits(
        logits_NBC=torch.cat(logits, 1),
        halting_NB=torch.cat(halting, 1) if halting else None,
        labels_B=torch.cat(labels) if len(labels) == len(logits) else None,
        texts=tuple(texts),
        sha256=digest.hexdigest(),
    )


def _rows_of(batch: Batch) -> Iterable[Mapping[str, Tensor]]:
    keys = [key for key in _PER_TOKEN if key in batch]
    for row, mask_T in enumerate(batch["attention_mask"].bool()):
        yield {key: batch[key][row][mask_T].cpu() for key in keys}
