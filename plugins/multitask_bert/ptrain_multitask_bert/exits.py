"""The task whose texts may leave early: a head on every block, and the rule that chooses one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.data.batches import IGNORED_LABEL
from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.agreement import differs_from_last
from plugin_trainer.early_exit.inference import exit_early, replay
from plugin_trainer.early_exit.rules import ExitRule
from plugin_trainer.early_exit.tolerance import is_outside
from ptrain_multitask_bert.answers import Answer
from ptrain_multitask_bert.heads import Head

# N blocks, B texts, R texts that are left, T tokens, H width of the encoder, C labels. What a rule
# sees are "units": logits as they are, but of a multi_label head [B, C, 2], for each label is a
# decision of its own.


@dataclass(frozen=True)
class Texts:
    """What the encoder and the heads read of a batch.

    mark_positions  [B, 2], where the marks <e1> and <e2> stand, for a relation
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None = None
    mark_positions: Tensor | None = None

    def inputs(self) -> dict[str, Tensor | None]:
        """Those of the encoder."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }

    def ask(
        self, answer: Answer, states_RTH: Tensor, *, block: int | None = None, rows: Any = ...
    ) -> Tensor:
        """The logits of a head for these rows."""
        marks = self.mark_positions
        # Under autocast too: a softmax in 16 bits has two digits.
        with torch.autocast(device_type=states_RTH.device.type, enabled=False):
            logits: Tensor = answer(
                states_RTH.float(),
                mask_BT=self.attention_mask[rows],
                mark_positions=marks[rows] if marks is not None else None,
                block=block,
            )
        return logits


def block_logits(encoder: nn.Module, answer: Answer, texts: Texts) -> list[Tensor]:
    """The logits of every block, all of them run."""
    states_NBTH = encoders.block_states(encoder, **texts.inputs())
    return [texts.ask(answer, states, block=n) for n, states in enumerate(states_NBTH, start=1)]


def block_units(encoder: nn.Module, answer: Answer, texts: Texts) -> Tensor:
    """What a rule sees of every block, [N, B, ...]."""
    logits_N = block_logits(encoder, answer, texts)
    return torch.stack([to_units(answer.head, logits) for logits in logits_N])


def at_full_depth(encoder: nn.Module, answer: Answer, texts: Texts) -> dict[str, Any]:
    """What `exits_of_blocks` says where no text leaves early."""
    config: Any = encoder.config
    logits = texts.ask(answer, encoders.last_states(encoder, **texts.inputs()))
    all_B = torch.ones_like(texts.input_ids[:, 0], dtype=torch.bool)
    return {
        "logits": logits,
        "exit_block": config.num_hidden_layers * all_B,
        "exit_agrees": all_B,
        "last_block_agrees": all_B,
    }


def leave_early(
    encoder: nn.Module, answer: Answer, texts: Texts, rule: ExitRule, valid_BT: Tensor | None
) -> dict[str, Any]:
    """Logits and exit blocks; the blocks of texts that have left do not run."""
    config: Any = encoder.config

    def unit(block: int, states_RTH: Tensor, rows_R: Tensor) -> tuple[Tensor, None]:
        logits = texts.ask(answer, states_RTH, block=block, rows=rows_R)
        return to_units(answer.head, logits), None

    exits = exit_early(
        encoder,
        encoders.inputs_of(encoder, **texts.inputs()),
        unit,
        rule,
        num_blocks=config.num_hidden_layers,
        valid_BT=valid_BT,
    )
    return {"logits": to_logits(answer.head, exits.answer_BC), "exit_block": exits.block_B}


def exits_of_blocks(
    head: Head, units_NB: Tensor, rule: ExitRule, valid_BT: Tensor | None
) -> dict[str, Any]:
    """Logits and exits where the answers of all blocks are known.

    `exit_agrees` with the full answer of the same rule, `last_block_agrees` with the last block's.
    """
    exits, full_B = replay(rule, units_NB, valid_BT=valid_BT)
    answers_B = exits.answer_BC

    def agrees(with_B: Tensor) -> Tensor:
        both = torch.stack([answers_B, with_B.to(answers_B.dtype)])
        differs = (
            is_outside(both, head.tolerance)
            if head.kind == "regression"
            else differs_from_last(both, valid_BT)
        )
        return ~differs[0]

    return {
        "logits": to_logits(head, answers_B),
        "exit_block": exits.block_B,
        "exit_agrees": agrees(full_B),
        "last_block_agrees": agrees(units_NB[-1]),
    }


def to_units(head: Head, logits: Tensor) -> Tensor:
    """Logits as a rule takes them: of a multi_label head, for each label "not given" and "given".

    The threshold is where the two are alike.
    """
    if head.kind != "multi_label":
        return logits
    given_BC = logits - _logit(head.threshold)
    return torch.stack([torch.zeros_like(given_BC), given_BC], -1)


def to_logits(head: Head, units: Tensor) -> Tensor:
    """What a rule answers as logits again."""
    if head.kind == "multi_label":
        units = units[..., 1] - units[..., 0] + _logit(head.threshold)
    return units.float()


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def valid_tokens(head: Head, batch: Mapping[str, Any], *, attention_mask: Tensor) -> Tensor | None:
    """Which tokens a sentence's exit depends on, [B, T]: the first of each word; None: all."""
    if head.kind != "tokens":
        return None
    for name in (f"labels_{head.name}", "word"):
        if batch.get(name) is not None:
            values: Tensor = batch[name]
            return values != IGNORED_LABEL
    return attention_mask.bool()
