"""One encoder for all tasks; each task asks it through heads of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plugin_trainer.data.texts import encoders
from plugin_trainer.errors import DataError, PtrainError
from ptrain_multitask_bert.answers import Answer
from ptrain_multitask_bert.heads import MARKS, Head
from ptrain_multitask_bert.losses import task_loss
from ptrain_multitask_bert.settings import SharedEncoderSettings

# B texts, T tokens, H width of the encoder

LABELS = "labels_"
"""A batch has the labels of a head under this and the head's name."""


class Tasks(Protocol):
    """What the model asks of its data module."""

    tokenizer: Any
    vocabulary_size: int
    pad_id: int
    max_tokens: int

    def heads(self) -> Sequence[Head]:
        """The heads of all tasks."""
        ...


class SharedEncoder(nn.Module):  # type: ignore[misc]
    """An encoder and, by "task/head", what answers for each head.

    A batch is of one task, which it names. Only the heads of that task are asked.
    """

    def __init__(
        self, settings: SharedEncoderSettings, data: Tasks, *, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        heads = checked_heads(data.heads())
        if encoder is None:
            encoder = encoders.build(
                settings, vocabulary_size=data.vocabulary_size, pad_id=data.pad_id
            )
        self.encoder = encoder
        config: Any = encoder.config
        check_fit(data, config=config)
        encoders.make_room(encoder, vocabulary_size=data.vocabulary_size)
        self.heads = nn.ModuleDict(
            {
                # A name with a slash is never one of ModuleDict's own, such as "keys" or "type".
                head.address: Answer(
                    head,
                    width=config.hidden_size,
                    dropout=settings.dropout,
                    pooling=settings.pooling,
                )
                for head in heads
            }
        )
        self.heads_of: dict[str, tuple[Head, ...]] = {
            task: tuple(head for head in heads if head.task == task)
            for task in dict.fromkeys(head.task for head in heads)
        }

    @classmethod
    def from_assets(
        cls, settings: SharedEncoderSettings, data: Tasks, folder: Path
    ) -> SharedEncoder:
        """The same model from a run's assets; its weights come from a checkpoint afterwards."""
        return cls(settings, data, encoder=encoders.from_folder(folder / "encoder"))

    def save_assets(self, folder: Path) -> None:
        """Write the encoder's configuration: all that is needed to build it again."""
        config: Any = self.encoder.config
        config.save_pretrained(folder / "encoder")

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        task: str = "",
        token_type_ids: Tensor | None = None,
        mark_positions: Tensor | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """Logits by head and, if the batch has labels, the loss, its parts and the count.

        task            whose batch it is; may be left out where there is one task only
        mark_positions  [B, 2], where the marks <e1> and <e2> stand, for a relation
        rest            labels_<head>, as `item_losses` takes them; anything else is ignored
        """
        heads = self._heads_of(task)
        states_BTH = encoders.last_states(
            self.encoder,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        # Under autocast too: a softmax in 16 bits has two digits.
        with torch.autocast(device_type=input_ids.device.type, enabled=False):
            logits = {
                head.name: self.heads[head.address](
                    states_BTH.float(), mask_BT=attention_mask, mark_positions=mark_positions
                )
                for head in heads
            }
            labels = {
                head.name: rest[LABELS + head.name]
                for head in heads
                if rest.get(LABELS + head.name) is not None
            }
            if self.training and not labels:
                raise without_labels(heads, batch=rest)
            weights = {head.name: self.heads[head.address].class_weights for head in heads}
            loss = task_loss(heads, logits=logits, labels=labels, class_weights=weights)
        return {**loss, "logits": logits}

    def _heads_of(self, task: str) -> tuple[Head, ...]:
        if not task and len(self.heads_of) == 1:
            return next(iter(self.heads_of.values()))
        if task not in self.heads_of:
            raise DataError(
                f"a batch is of the task '{task}'" if task else "a batch does not say its task",
                hint=f"the model has the tasks: {', '.join(self.heads_of)}",
            )
        return self.heads_of[task]


def without_labels(heads: Sequence[Head], *, batch: Mapping[str, Any]) -> DataError:
    """The error for a training batch of these heads that none of them can learn from."""
    wanted = ", ".join(LABELS + head.name for head in heads)
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


def check_fit(data: Tasks, *, config: Any) -> None:
    """Refuse data that do not fit the encoder, before a step is made."""
    # The marks are added to the encoder's own tokenizer: the encoder learns what they mean.
    added = len({*MARKS} & data.tokenizer.get_vocab().keys())
    if data.vocabulary_size - added > config.vocab_size:
        raise PtrainError(
            f"the tokenizer knows {data.vocabulary_size} tokens, the encoder {config.vocab_size}",
            hint="leave out data_settings.tokenizer, so that the encoder's own is used",
        )
    longest = encoders.longest_input(config)
    if longest is not None and data.max_tokens > longest:
        raise PtrainError(
            f"a task reads {data.max_tokens} tokens of a text, the encoder takes {longest}",
            hint=f"set max_tokens in data_settings to {longest} or less",
        )
