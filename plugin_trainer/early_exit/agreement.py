"""Estimate, without labels, how likely a block's answer is to be that of the last block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plugin_trainer.errors import PtrainError
from plugin_trainer.ops.halting.reference import exit_precision

# N blocks, B rows, T tokens of a row, C classes. A row may be a sentence of which every token is
# answered: its logits are [T, C], and valid_BT says which of them count.

CERTAIN = 1e9
"""The score of the last block, which agrees with itself."""

_SHARPNESS = 2.0  # of the targets: few rows disagree, and a target of 0 or 1 is a noisy one
_RIDGE = 1e-3
_EXTREME = 1e-6  # a target may be no nearer to 0 or 1, or the intercept has no end


def margin(logits_BC: Tensor) -> Tensor:
    """The difference of the two largest logits, [B] in float64 (float32 on a device without); of
    tokens [B, T].
    """
    top_B2 = exit_precision(logits_BC).topk(2, -1).values
    return top_B2[..., 0] - top_B2[..., 1]


def least_of_tokens(scores_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The score [B] of each row: that of its least sure valid token; infinite if it has none.

    A row with a single answer, [B], has its own score.
    """
    if scores_BT.dim() == 1:
        return scores_BT
    if valid_BT is not None:
        scores_BT = scores_BT.masked_fill(~valid_BT, torch.inf)
    return scores_BT.amin(-1)


@dataclass(frozen=True)
class AgreementMap:
    """Two numbers a block: score_n = intercept_n + slope_n margin_n.

    The score is the estimated log-odds that block n answers as the last block does, so one level
    has one meaning in every block. The last block has no entry; its score is CERTAIN.
    """

    intercepts: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def num_blocks(self) -> int:
        """N, the last block included."""
        return len(self.intercepts) + 1

    def score(self, block: int, logits_BC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """The scores [B] of a block's answers in float64; blocks count from 1."""
        margin_B = margin(logits_BC)
        if block == self.num_blocks:
            return least_of_tokens(torch.full_like(margin_B, CERTAIN), valid_BT)
        scores_B = self.intercepts[block - 1] + self.slopes[block - 1] * margin_B
        return least_of_tokens(scores_B, valid_BT)

    def scores(self, logits_NBC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """The scores of every block, [N, B] in float64."""
        return torch.stack(
            [self.score(n, z_BC, valid_BT) for n, z_BC in enumerate(logits_NBC, start=1)]
        )


def fit_agreement(logits_NBC: Tensor) -> AgreementMap:
    """Fit the map on rows without labels: a logistic regression a block, on the margin.

    The target of a row is the probability that softmax(2 z_N) gives to the answer of block n.

    Raises PtrainError for rows that cannot tell agreement from disagreement.
    """
    _check(logits_NBC)
    final_BC = (_SHARPNESS * logits_NBC[-1].double()).softmax(-1)
    pairs = []
    for logits_BC in logits_NBC[:-1]:
        answers_B1 = logits_BC.argmax(-1, keepdim=True)
        target_B = final_BC.gather(-1, answers_B1).squeeze(-1)
        pairs.append(fit_logistic(margin(logits_BC), target_B))
    return AgreementMap(*(tuple(values) for values in zip(*pairs, strict=True)))


def _check(logits_NBC: Tensor) -> None:
    if logits_NBC.shape[0] < 2:
        raise PtrainError(
            "early exit needs two blocks that answer, and the model has one",
            hint="train every block: model_settings.loss = 'joint'",
        )
    if logits_NBC.shape[-1] < 2:
        raise PtrainError("early exit needs two classes or more")
    if not logits_NBC.isfinite().all():
        raise PtrainError("the logits of the calibration rows are not finite")
    if len(logits_NBC[-1].argmax(-1).unique()) < 2:
        rows = logits_NBC.shape[1]
        raise PtrainError(
            f"the last block gives all {rows} calibration rows the same class",
            hint="use rows of every class, or train longer",
        )


def fit_logistic(margin_B: Tensor, target_B: Tensor) -> tuple[float, float]:
    """Intercept and slope of a logistic regression on soft targets, by L-BFGS in float64.

    A slope below 0 is none: then the intercept is the rate alone.
    """
    target_B = target_B.clamp(_EXTREME, 1 - _EXTREME)
    mean, scale = margin_B.mean(), margin_B.std() + _EXTREME
    standard_B = (margin_B - mean) / scale
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        predicted_B = weights[0] + weights[1] * standard_B
        loss = F.binary_cross_entropy_with_logits(predicted_B, target_B)
        loss = loss + _RIDGE * weights[1] ** 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    slope = float(weights[1].detach() / scale)
    if slope < 0:  # a larger margin must not mean less agreement: the block's rate alone is left
        return float(target_B.mean().logit()), 0.0
    return float(weights[0].detach()) - slope * float(mean), slope


def differs_from_last(logits_NBC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
    """Whether each block's answer is not that of the last, [N, B]; of any valid token."""
    answers_NB = logits_NBC.argmax(-1)
    differs_NB = answers_NB.ne(answers_NB[-1])
    if differs_NB.dim() == 2:
        return differs_NB
    return (differs_NB if valid_BT is None else differs_NB & valid_BT).any(-1)


def at_block(values_NB: Tensor, block_B: Tensor) -> Tensor:
    """What each row has at its block, counted from 1."""
    return values_NB.gather(0, (block_B - 1)[None]).squeeze(0)


def first_exit(scores_NB: Tensor, level: float) -> Tensor:
    """The first block, counted from 1, whose score reaches the level; the last one always does."""
    may_leave_NB = scores_NB >= level
    may_leave_NB[-1] = True
    return may_leave_NB.int().argmax(0) + 1
