"""What is timed: the unmodified encoder, and early exit of a batch or of a window of batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.rules import AgreementLevel
from plugin_trainer.early_exit.windows import AnswersWindows
from ptrain_dactbert.block_logits import BlockLogits
from ptrain_dactbert.curve.runs import Judged
from ptrain_dactbert.curve.stopwatch import Work

# B rows of a batch, T tokens, H width of a block

Batch = Mapping[str, Tensor]

MOST_BATCHES = 1000
"""Of one size: of more, every so many are timed."""


def unmodified(run: Judged) -> Work:
    """The encoder as it is, and the last unit."""
    model: Any = run.loaded.model

    def answer(batch: Batch) -> object:
        with torch.inference_mode(), run.loaded.precision.autocast():
            states_BTH = encoders.last_states(
                model.encoder,
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                token_type_ids=batch.get("token_type_ids"),
            )
            with torch.autocast(device_type=states_BTH.device.type, enabled=False):
                return model.units[-1](states_BTH.float(), batch["attention_mask"])

    return answer


def leaving(run: Judged, rule: AgreementLevel) -> Work:
    """The model by a rule."""
    model: Any = run.loaded.model

    def answer(batch: Batch) -> object:
        model.exit_by(rule)
        with torch.inference_mode(), run.loaded.precision.autocast():
            return model(**batch)

    return answer


def one_by_one(work: Work) -> Work:
    """The same for a window: its batches in turn."""

    def answer(window: Sequence[Batch]) -> object:
        return [work(batch) for batch in window]

    return answer


def rebatched(run: Judged, rule: AgreementLevel) -> Work | None:
    """The model by a rule on a window, whose survivors share new batches after each block."""
    model: Any = run.loaded.model
    if not isinstance(run.loaded.model, AnswersWindows):
        return None

    def answer(window: Sequence[Batch]) -> object:
        model.exit_by(rule)
        with torch.inference_mode(), run.loaded.precision.autocast():
            return model.answer_window(window)

    return answer


def split_rows(rows: BlockLogits, size: int) -> list[Tensor]:
    """The rows of each batch; in more than one row a batch, sorted by length. Of very many batches,
    every so many are taken.
    """
    order_B = rows.lengths_B.argsort(stable=True) if size > 1 else torch.arange(len(rows.texts))
    parts = order_B.split(size)
    return list(parts[:: math.ceil(len(parts) / MOST_BATCHES)])


def make_batch(run: Judged, part_B: Tensor) -> Batch:
    """These rows, padded, on the device of the run."""
    texts = [run.rows.texts[row] for row in part_B.tolist()]
    pad_id: int = getattr(run.loaded.data, "pad_id", 0)
    filled = {
        key: torch.nn.utils.rnn.pad_sequence(
            [text[key] for text in texts],
            batch_first=True,
            padding_value=pad_id if key == "input_ids" else 0,
        )
        for key in texts[0]
    }
    lengths_B1 = run.rows.lengths_B[part_B].unsqueeze(-1)
    mask_BT = torch.arange(filled["input_ids"].shape[1]) < lengths_B1
    batch = filled | {"attention_mask": mask_BT.long()}
    return {key: value.to(run.loaded.device) for key, value in batch.items()}
