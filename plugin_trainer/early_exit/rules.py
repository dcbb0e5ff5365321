"""When a row may leave, and with which answer: the rules of early exit.

A rule makes a decider for each batch. The decider is called after each block with the rows that are
left; a row's decision depends on that row alone. A row may be a sentence of which every token is
answered: it leaves when all of its valid tokens may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap, least_of_tokens
from plugin_trainer.ops.halting.reference import accumulate, exit_precision, may_stop

# N blocks, B rows of the batch, R rows that are left, T tokens of a row, C classes. The logits of
# sentences are [R, T, C], and a regression has numbers [R] in their place.

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

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """A decider for a batch of so many rows.

        valid_BT  which tokens of sentences count; None: all of them
        """
        ...


@dataclass(frozen=True)
class AgreementLevel:
    """Leave at the first block whose estimated log-odds of agreeing with the last reach a level."""

    agreement_map: AgreementMap
    level: float

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """Keeps nothing between blocks."""
        del num_blocks, num_rows
        return _at_least(self.level, self.agreement_map.score, valid_BT)


@dataclass(frozen=True)
class Entropy:
    """Leave where the entropy of the answer, in nats, is below a threshold (DeeBERT, ACL 2020)."""

    threshold: float

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """Keeps nothing between blocks."""
        del num_blocks, num_rows
        return _at_least(-self.threshold, _negative_entropy, valid_BT)


def _negative_entropy(block: int, logits_RC: Tensor, valid_RT: Tensor | None) -> Tensor:
    del block
    log_probs_RC = exit_precision(logits_RC).log_softmax(-1)
    return least_of_tokens((log_probs_RC.exp() * log_probs_RC).sum(-1), valid_RT)


def _at_least(
    level: float,
    score: Callable[[int, Tensor, Tensor | None], Tensor],
    valid_BT: Tensor | None,
) -> Decider:
    """Leave where a block's own logits score at least so much."""

    def decide(
        block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        del halting_R
        return logits_RC, score(block, logits_RC, _of_rows(valid_BT, rows_R)) >= level

    return decide


def _of_rows(valid_BT: Tensor | None, rows_R: Tensor) -> Tensor | None:
    return valid_BT[rows_R] if valid_BT is not None else None


@dataclass(frozen=True)
class Patience:
    """Leave when so many blocks in a row repeat the answer before them (PABEE, NeurIPS 2020)."""

    patience: int

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """Counts the repetitions of each row."""
        del num_blocks
        return _PatienceDecider(self.patience, num_rows, valid_BT)


class _PatienceDecider:
    def __init__(self, patience: int, num_rows: int, valid_BT: Tensor | None) -> None:
        self._patience = patience
        self._valid_BT = valid_BT
        self._answer_BT: Tensor | None = None
        self._repeated_B = torch.zeros(num_rows, dtype=torch.int64)

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        del block, halting_R
        self._repeated_B = self._repeated_B.to(rows_R.device)
        answer_RT = _with_tokens(logits_RC).argmax(-1)
        if self._answer_BT is None:
            self._answer_BT = answer_RT.new_full((len(self._repeated_B), answer_RT.shape[1]), -1)
        repeats_RT = answer_RT == self._answer_BT[rows_R]
        valid_RT = _of_rows(self._valid_BT, rows_R)
        repeats_R = (repeats_RT if valid_RT is None else repeats_RT | ~valid_RT).all(-1)
        self._repeated_B[rows_R] = torch.where(repeats_R, self._repeated_B[rows_R] + 1, 0)
        self._answer_BT[rows_R] = answer_RT
        return logits_RC, self._repeated_B[rows_R] >= self._patience


def _with_tokens(logits_RC: Tensor) -> Tensor:
    """[R, T, C]: a row with a single answer is a sentence of one token."""
    return logits_RC if logits_RC.dim() == 3 else logits_RC.unsqueeze(1)


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

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """Accumulates the answer of each row."""
        return _CertificateDecider(self, num_blocks, num_rows, valid_BT)

    def halting_logits(
        self,
        block: int,
        logits_RC: Tensor,
        halting_R: Tensor | None,
        valid_RT: Tensor | None = None,
    ) -> Tensor:
        """The halting logits [R] of a block."""
        if self.agreement_map is None:
            assert halting_R is not None, "the units of this model learn no halting logits"
            return halting_R
        score_R = self.agreement_map.score(block, logits_RC, valid_RT)
        return LOSSLESS_GAIN * (self.level - score_R.clamp(-_LARGEST_SCORE, _LARGEST_SCORE))


class _CertificateDecider:
    def __init__(
        self, rule: Certificate, num_blocks: int, num_rows: int, valid_BT: Tensor | None
    ) -> None:
        self._rule = rule
        self._num_blocks = num_blocks
        self._num_rows = num_rows
        self._valid_BT = valid_BT
        self._log_answer_BTC: Tensor | None = None
        self._log_p_B: Tensor | None = None

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        valid_RT = _of_rows(self._valid_BT, rows_R)
        halting_R = self._rule.halting_logits(block, logits_RC, halting_R, valid_RT)
        halting_R = exit_precision(halting_R)
        logits_RTC = exit_precision(_with_tokens(logits_RC))
        if self._log_answer_BTC is None or self._log_p_B is None:
            shape = (self._num_rows, *logits_RTC.shape[1:])
            self._log_answer_BTC = logits_RTC.new_full(shape, -torch.inf)
            self._log_p_B = logits_RTC.new_zeros(self._num_rows)
        log_p_R = self._log_p_B[rows_R]
        log_answer_RTC = accumulate(self._log_answer_BTC[rows_R], log_p_R, logits_RTC)
        log_p_R = log_p_R + torch.nn.functional.logsigmoid(halting_R)
        left = self._num_blocks - block
        stop_R = may_stop(
            log_answer_RTC, log_p_R, valid_RT, blocks_left=left, delta=self._rule.delta
        )
        self._log_answer_BTC[rows_R], self._log_p_B[rows_R] = log_answer_RTC, log_p_R
        return log_answer_RTC.reshape(logits_RC.shape), stop_R
