"""One encoder for all tasks; each task asks it through heads of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.fitting import BlockAnswers
from plugin_trainer.early_exit.rules import ExitRule
from plugin_trainer.errors import DataError, PtrainError
from ptrain_multitask_bert.answers import Answer
from ptrain_multitask_bert.checks import check_blocks, check_fit, checked_heads, without_labels
from ptrain_multitask_bert.exits import (
    Texts,
    at_full_depth,
    block_logits,
    block_units,
    exits_of_blocks,
    leave_early,
    valid_tokens,
)
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.losses import joint_loss, task_loss
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

    exit_tasks  the tasks whose texts may leave early, by the rules that `exit_by` sets
    """

    learns_halting = False

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
        self.exit_tasks = tuple(dict.fromkeys(head.task for head in heads if head.exits))
        if self.exit_tasks:
            check_blocks(encoder)
        self.exit_rules: dict[str, ExitRule] = {}
        self.heads = nn.ModuleDict(
            {
                # A name with a slash is never one of ModuleDict's own, such as "keys" or "type".
                head.address: Answer(
                    head,
                    width=config.hidden_size,
                    dropout=settings.dropout,
                    pooling=settings.pooling,
                    num_blocks=config.num_hidden_layers,
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
        texts = Texts(input_ids, attention_mask, token_type_ids, mark_positions)
        labels = {
            head.name: rest[LABELS + head.name]
            for head in heads
            if rest.get(LABELS + head.name) is not None
        }
        if self.training and not labels:
            raise without_labels(heads, batch=rest)
        if heads[0].exits:
            return self._forward_with_exits(heads[0], texts, labels=labels, batch=rest)
        states_BTH = encoders.last_states(self.encoder, **texts.inputs())
        logits = {head.name: texts.ask(self.heads[head.address], states_BTH) for head in heads}
        return {**self._loss(heads, logits=logits, labels=labels), "logits": logits}

    def exit_by(self, rule: ExitRule | None, *, task: str = "") -> None:
        """Let the texts of a task leave by a rule from now on; None: all blocks, always.

        task  one of `exit_tasks`; may be left out where there is one
        """
        if not task and len(self.exit_tasks) == 1:
            task = self.exit_tasks[0]
        if task not in self.exit_tasks:
            raise PtrainError(
                f"the task '{task}' has no exits",
                hint=f"tasks with exits: {', '.join(self.exit_tasks) or 'none'}",
            )
        self.exit_rules.pop(task, None)
        if rule is not None:
            self.exit_rules[task] = rule

    def block_answers(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        task: str = "",
        token_type_ids: Tensor | None = None,
        mark_positions: Tensor | None = None,
        **rest: Any,
    ) -> BlockAnswers:
        """What every block answers on a batch of a task with exits, to calibrate them."""
        (head,) = self._heads_of(task)
        texts = Texts(input_ids, attention_mask, token_type_ids, mark_positions)
        return BlockAnswers(
            block_units(self.encoder, self.heads[head.address], texts),
            valid_tokens(head, rest, attention_mask=attention_mask),
            head.tolerance if head.kind == "regression" else None,
        )

    def _forward_with_exits(
        self, head: Head, texts: Texts, *, labels: Mapping[str, Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Training teaches all blocks; else the answers are those of the rule, and of the last
        block without one.
        """
        answer, rule = self.heads[head.address], self.exit_rules.get(head.task)
        if self.training:
            logits_N = block_logits(self.encoder, answer, texts)
            each = [self._loss([head], logits={head.name: z}, labels=labels) for z in logits_N]
            return {**joint_loss(each), "logits": {head.name: logits_N[-1]}}
        valid_BT = valid_tokens(head, batch, attention_mask=texts.attention_mask)
        if rule is None:
            found = at_full_depth(self.encoder, answer, texts)
        elif labels:
            units_NB = block_units(self.encoder, answer, texts)
            found = exits_of_blocks(head, units_NB, rule, valid_BT)
        else:
            found = leave_early(self.encoder, answer, texts, rule, valid_BT)
        logits = {head.name: found.pop("logits")}
        return {**self._loss([head], logits=logits, labels=labels), "logits": logits, **found}

    def _loss(
        self, heads: Sequence[Head], *, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        weights = {head.name: self.heads[head.address].class_weights for head in heads}
        some = next(iter(logits.values()))
        with torch.autocast(device_type=some.device.type, enabled=False):
            return task_loss(heads, logits=logits, labels=labels, class_weights=weights)

    def _heads_of(self, task: str) -> tuple[Head, ...]:
        if not task and len(self.heads_of) == 1:
            return next(iter(self.heads_of.values()))
        if task not in self.heads_of:
            raise DataError(
                f"a batch is of the task '{task}'" if task else "a batch does not say its task",
                hint=f"the model has the tasks: {', '.join(self.heads_of)}",
            )
        return self.heads_of[task]
