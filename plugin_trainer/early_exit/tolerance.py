"""Estimate how likely a block's number is to be within a tolerance of the last block's.

The signal is how much the number has changed since the block before: the first block has none, and
its rows leave all or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import CERTAIN, fit_logistic
from plugin_trainer.early_exit.rules import Decider
from plugin_trainer.errors import PtrainError
from plugin_trainer.ops.halting.reference import exit_precision

# N blocks, B rows, R rows that are left


@dataclass(frozen=True)
class ToleranceMap:
    """Two numbers a block: score_n = intercept_n - slope_n |y_n - y_(n-1)|, and y_0 = y_1.

    The score is the estimated log-odds of |y_n - y_N| <= tolerance, as an AgreementMap's is of the
    same class. The last block has no entry; its score is CERTAIN.
    """

    intercepts: tuple[float, ...]
    slopes: tuple[float, ...]
    tolerance: float

    @property
    def num_blocks(self) -> int:
        """N, the last block included."""
        return len(self.intercepts) + 1

    def score(self, block: int, values_B: Tensor, before_B: Tensor) -> Tensor:
        """The scores [B] of a block, from 1, by its numbers and those of the block before."""
        change_B = (exit_precision(values_B) - exit_precision(before_B)).abs()
        if block == self.num_blocks:
            return torch.full_like(change_B, CERTAIN)
        return self.intercepts[block - 1] - self.slopes[block - 1] * change_B

    def scores(self, values_NB: Tensor) -> Tensor:
        """The scores of every block, [N, B] in float64."""
        before_NB = torch.cat([values_NB[:1], values_NB[:-1]])
        pairs = zip(values_NB, before_NB, strict=True)
        return torch.stack([self.score(n, *pair) for n, pair in enumerate(pairs, start=1)])


def fit_tolerance(values_NB: Tensor, tolerance: float) -> ToleranceMap:
    """Fit the map on rows without labels: a logistic regression a block, on the change.

    Raises PtrainError for numbers that are not finite.
    """
    if not values_NB.isfinite().all():
        raise PtrainError("the numbers of the calibration rows are not finite")
    values_NB = values_NB.double()
    changes_NB = (values_NB - torch.cat([values_NB[:1], values_NB[:-1]])).abs()
    near_NB = ~is_outside(values_NB, tolerance)
    pairs = [
        fit_logistic(-change_B, near_B.double())
        for change_B, near_B in zip(changes_NB[:-1], near_NB[:-1], strict=True)
    ]
    intercepts, slopes = zip(*pairs, strict=True)
    return ToleranceMap(intercepts, slopes, tolerance)


def is_outside(values_NB: Tensor, tolerance: float) -> Tensor:
    """Whether each block's number is further than the tolerance from the last block's, [N, B]."""
    return (values_NB - values_NB[-1]).abs() > tolerance


@dataclass(frozen=True)
class ToleranceLevel:
    """Leave where the estimated log-odds of being near the last block's number reach a level."""

    tolerance_map: ToleranceMap
    level: float

    def decider(self, *, num_blocks: int, num_rows: int, valid_BT: Tensor | None = None) -> Decider:
        """Keeps the numbers of the block before."""
        del num_blocks, valid_BT
        return _ToleranceDecider(self, num_rows)


class _ToleranceDecider:
    def __init__(self, rule: ToleranceLevel, num_rows: int) -> None:
        self._rule = rule
        self._num_rows = num_rows
        self._before_B: Tensor | None = None

    def __call__(
        self, block: int, rows_R: Tensor, logits_RC: Tensor, halting_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        del halting_R
        values_R = logits_RC
        if self._before_B is None:
            self._before_B = values_R.new_zeros(self._num_rows)
        before_R = values_R if block == 1 else self._before_B[rows_R]
        self._before_B[rows_R] = values_R
        score_R = self._rule.tolerance_map.score(block, values_R, before_R)
        return values_R, score_R >= self._rule.level
