"""Answer a batch by a rule: run blocks until every row has left, or replay logits of all blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plugin_trainer.early_exit.blocks import run_blocks
from plugin_trainer.early_exit.rules import ExitRule

# N blocks, B rows of the batch, R rows that are left, T tokens, H width of a block, C classes

Unit = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""unit(block, states_RTH, rows_R) -> class logits [R, C], and halting logits [R] if it has them."""


class Exits(NamedTuple):
    """answer_BC are logits or log-probabilities; block_B counts from 1."""

    answer_BC: Tensor
    block_B: Tensor


def exit_early(
    encoder: nn.Module,
    inputs: Mapping[str, Tensor],
    unit: Unit,
    rule: ExitRule,
    *,
    num_blocks: int,
    rows_at_once: int | None = None,
    valid_BT: Tensor | None = None,
) -> Exits:
    """Run the encoder until every row of the batch has left by the rule.

    inputs, rows_at_once  as in run_blocks
    valid_BT              which tokens count, where the unit answers tokens; None: all of them
    """
    num_rows = inputs["input_ids"].shape[0]
    decide = rule.decider(num_blocks=num_blocks, num_rows=num_rows, valid_BT=valid_BT)
    answer_BC: Tensor | None = None
    block_B = torch.zeros(num_rows, dtype=torch.int64, device=inputs["input_ids"].device)

    def visit(block: int, states_RTH: Tensor, rows_R: Tensor) -> Tensor:
        nonlocal answer_BC
        logits_RC, halting_R = unit(block, states_RTH, rows_R)
        answer_RC, leaves_R = decide(block, rows_R, logits_RC, halting_R)
        if num_rows == 1:  # nothing is to be put in its place
            answer_BC = answer_RC
            block_B.fill_(block)
            return leaves_R
        if answer_BC is None:
            answer_BC = answer_RC.new_empty(num_rows, *answer_RC.shape[1:])
        # Rows that stay are written again later.
        answer_BC[rows_R], block_B[rows_R] = answer_RC, block
        return leaves_R

    run_blocks(encoder, inputs, visit, rows_at_once=rows_at_once)
    assert answer_BC is not None
    return Exits(answer_BC, block_B)


def replay(
    rule: ExitRule,
    logits_NBC: Tensor,
    halting_NB: Tensor | None = None,
    valid_BT: Tensor | None = None,
) -> tuple[Exits, Tensor]:
    """The exits by a rule where the logits of all blocks are known, and the full answer [B, C]."""
    num_blocks, num_rows = logits_NBC.shape[:2]
    decide = rule.decider(num_blocks=num_blocks, num_rows=num_rows, valid_BT=valid_BT)
    rows_B = torch.arange(num_rows, device=logits_NBC.device)
    block_B = torch.zeros_like(rows_B)
    answer_BC = full_BC = logits_NBC[-1]
    for block in range(1, num_blocks + 1):
        halting_B = halting_NB[block - 1] if halting_NB is not None else None
        full_BC, leaves_B = decide(block, rows_B, logits_NBC[block - 1], halting_B)
        leaves_here_B = (leaves_B | (block == num_blocks)) & (block_B == 0)
        block_B = torch.where(leaves_here_B, block, block_B)
        each = (-1, *[1] * (full_BC.dim() - 1))
        answer_BC = torch.where(leaves_here_B.view(each), full_BC, answer_BC)
    return Exits(answer_BC, block_B), full_BC
