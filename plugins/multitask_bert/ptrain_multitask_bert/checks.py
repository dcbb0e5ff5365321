"""What a model cannot be made of, or trained on, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.blocks import find_blocks
from plugin_trainer.errors import DataError, PtrainError
from ptrain_multitask_bert.heads import MARKS, Head


class Read(Protocol):
    """What is checked of the data."""

    tokenizer: Any
    vocabulary_size: int
    max_tokens: int


def without_labels(heads: Sequence[Head], *, batch: Mapping[str, Any]) -> DataError:
    """The error for a training batch of these heads that none of them can learn from."""
    wanted = ", ".join(f"labels_{head.name}" for head in heads)
    return DataError(
        f"a training batch of the task '{heads[0].task}' has no labels",
        hint=f"beside its texts it has: {', '.join(batch) or 'nothing'}; looked for: {wanted}",
    )


def checked_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    """The heads, if there is one and no two are alike. Raises PtrainError."""
    if not heads:
        raise PtrainError("the data has no task", hint="give it one in data_settings.tasks")
    addresses = [head.address for head in heads]
    if twice := sorted({address for address in addresses if addresses.count(address) > 1}):
        raise PtrainError(
            f"there are two heads {twice[0]}", hint="give the heads of a task different names"
        )
    return tuple(heads)


def check_fit(data: Read, *, config: Any) -> None:
    """Refuse data that do not fit the encoder, before a step is made."""
    # The marks are added to the encoder's own tokenizer: the encoder learns what they mean.
    added = len({*MARKS} & data.tokenizer.get_vocab().keys())
    encoders.check_inputs(
        config,
        vocabulary_size=data.vocabulary_size - added,
        max_tokens=data.max_tokens,
        key="max_tokens of a task",
    )


def check_blocks(encoder: nn.Module) -> None:
    """Refuse an encoder whose blocks cannot be run one by one. Raises PtrainError."""
    find_blocks(encoder)
    config: Any = encoder.config
    if config.num_hidden_layers < 2:
        raise PtrainError(
            "a task has exits, and the encoder has one block",
            hint="use an encoder of two blocks or more, or leave out exits",
        )
