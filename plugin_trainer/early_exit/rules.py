"""When a row may leave, and with which answer: the rules of early exit.

A rule makes a decider for each batch. The decider is called after each block with the rows that are
left; a row's decision depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.ops.halting.reference import accumulate, exit_precision, may_stop

# N blocks, B rows of the batch, R rows that are left, C classes

LOSSLESS_GAIN = 16.0
"""Halting logits of the lossless rule are this times (level - score): p_n is then near 0 or 1."""

_LARGEST_SCORE = 50.0  # beyond it sigmoid(LOSSLESS_GAIN * score) does not change any more


class Decider(Protocol):
    """Decides for one batch."""

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The rows' answers [R, C], logits or log-probabilities, and which of them leave [R].

        block      from 1
        halting_R  halting logits of the block, for the rules that read them
        """
        ...


class ExitRule(Protocol):
    """A rule with its settings."""

    def decider(self, *, num_blocks: int, num_rows: int) -> Decider:
        """A decider for a batch of so many rows."""
        ...


@dataclass(frozen=True)
class AgreementLevel:
    """Leave at the first block whose estimated log-odds of agreeing with the last reach a level."""

    agreement_map: AgreementMap
    level: float

    def decider(self, *, num_blocks: int, num_rows: int) -> Decider:
        """Keeps nothing between blocks."""
        del num_blocks, num_rows
        return _at_least(self.level, self.agreement_map.score)


@dataclass(frozen=True)
class Entropy:
    """Leave where the entropy of the answer, in nats, is below a threshold (DeeBERT, ACL 2020)."""

    threshold: float

    def decider(self, *, num_blocks: int, num_rows: int) -> Decider:
        """Keeps nothing between blocks."""
        del num_blocks, num_rows
        return _at_least(-self.threshold, _negative_entropy)


def _negative_entropy(block: int, logits_RC: Tensor) -> Tensor:
    del block
    log_probs_RC = exit_precision(logits_RC).log_softmax(-1)
    return (log_probs_RC.exp() * log_probs_RC).sum(-1)


def _at_least(level: float, score: Callable[[int, Tensor], Tensor]) -> Decider:
    """Leave where a block's own logits score at least so much."""

    def decide(
        block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        del rows_R, halting_R
        return logits_RC, score(block, logits_RC) >= level

    return decide


@dataclass(frozen=True)
class Patience:
    """Leave when so many blocks in a row repeat the answer before them (PABEE, NeurIPS 2020)."""

    patience: int

    def decider(self, *, num_blocks: int, num_rows: int) -> Decider:
        """Counts the repetitions of each row."""
        del num_blocks
        return _PatienceDecider(self.patience, num_rows)


class _PatienceDecider:
    def __init__(self, patience: int, num_rows: int) -> None:
        self._patience = patience
        self._answer_B = torch.full((num_rows,), -1)
        self._repeated_B = torch.zeros(num_rows, dtype=torch.int64)

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        del block, halting_R
        self._answer_B = self._answer_B.to(rows_R.device)
        self._repeated_B = self._repeated_B.to(rows_R.device)
        answer_R = logits_RC.argmax(-1)
        repeats_R = answer_R == self._answer_B[rows_R]
        self._repeated_B[rows_R] = torch.where(repeats_R, self._repeated_B[rows_R] + 1, 0)
        self._answer_B[rows_R] = answer_R
        return logits_RC, self._repeated_B[rows_R] >= self._patience


@dataclass(frozen=True)
class Certificate:
    """Leave when no continuation can change the accumulated answer (DACT): see ops.halting_exit.

    delta          0 is lossless: the answer has the class of the accumulated answer of all blocks
    agreement_map  where the halting logits come from: LOSSLESS_GAIN (level - score_n); None: from
                   the units, which learned them
    """

    delta: float = 0.0
    agreement_map: AgreementMap | None = None
    level: float = 0.0

    def decider(self, *, num_blocks: int, num_rows: int) -> Decider:
        """Accumulates the answer of each row."""
        return _CertificateDecider(self, num_blocks, num_rows)

    def halting_logits(self, block: int, logits_RC: Tensor, halting_R: Tensor | None) -> Tensor:
        """The halting logits [R] of a block."""
        if self.agreement_map is None:
            assert halting_R is not None, "the units of this model learn no halting logits"
            return halting_R
        score_R = self.agreement_map.score(block, logits_RC).clamp(-_LARGEST_SCORE, _LARGEST_SCORE)
        return LOSSLESS_GAIN * (self.level - score_R)


class _CertificateDecider:
    def __init__(self, rule: Certificate, num_blocks: int, num_rows: int) -> None:
        self._rule = rule
        self._num_blocks = num_blocks
        self._num_rows = num_rows
        self._log_answer_BC: Tensor | None = None
        self._log_p_B: Tensor | None = None

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        halting_R = exit_precision(self._rule.halting_logits(block, logits_RC, halting_R))
        logits_RC = exit_precision(logits_RC)
        if self._log_answer_BC is None or self._log_p_B is None:
            shape = (self._num_rows, logits_RC.shape[-1])
            self._log_answer_BC = logits_RC.new_full(shape, -torch.inf)
            self._log_p_B = logits_RC.new_zeros(self._num_rows)
        log_p_R = self._log_p_B[rows_R]
        # The reference takes units of T tokens: a row is a unit of one.
        log_answer_R1C = accumulate(
            self._log_answer_BC[rows_R].unsqueeze(1), log_p_R, logits_RC.unsqueeze(1)
        )
        log_p_R = log_p_R + torch.nn.functional.logsigmoid(halting_R)
        left = self._num_blocks - block
        stop_R = may_stop(log_answer_R1C, log_p_R, None, blocks_left=left, delta=self._rule.delta)
        log_answer_RC = log_answer_R1C.squeeze(1)
        self._log_answer_BC[rows_R], self._log_p_B[rows_R] = log_answer_RC, log_p_R
        return log_answer_RC, stop_R
