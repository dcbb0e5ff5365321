"""The halting loss and the exit rule in plain torch: the arithmetic that the kernels repeat.

DACT (Eyzaguirre & Soto, "Differentiable Adaptive Computation Time for Visual Reasoning", CVPR 2020)
as DACT-BERT (Eyzaguirre et al., arXiv 2109.11745) uses it. Block n of N answers with class logits
z_n and a halting logit u_n:

    y_n = softmax(z_n)      h_n = sigmoid(u_n)                  h near 1 goes on, h near 0 stops
    p_0 = 1                 p_n = h_n p_{n-1}
    a_0 = 0                 a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}

so that a_N = sum_n w_n y_n with w_n = p_{n-1} prod_{m > n} (1 - p_{m-1}), and sum_n w_n = 1.
Everything is formed from logarithms: a label whose probability is e^-10000 still has a loss and a
gradient in float32, and h may be exactly 0 or 1.
"""

# N blocks, U halting units (rows, or sentences), T labelled tokens per unit (1 for rows), C classes

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The exit rule must hold by more than the rounding of whoever recomputes the full answer in
# float32.
EXIT_SLACK = 1e-6


class Forward(NamedTuple):
    """What the forward pass gives, in the accumulation dtype.

    task_UT          -sum_c t_c log a_N,c
    supervision_UT   -sum_n eta_n sum_c t_c log y_n,c
    regulariser_U    sum_n alpha_n h_n + beta_n p_n
    log_answer_UTC   log a_N
    halting_p_NU     p_n
    exit_weights_NU  w_n
    """

    task_UT: Tensor
    supervision_UT: Tensor
    regulariser_U: Tensor
    log_answer_UTC: Tensor
    halting_p_NU: Tensor
    exit_weights_NU: Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any is float64, otherwise float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def halting_forward(
    logits_NUTC: Tensor,
    halting_NU: Tensor,
    targets_UTC: Tensor,
    *,
    alpha_N: Tensor,
    beta_N: Tensor,
    eta_N: Tensor | None,
) -> Forward:
    """The unreduced loss and its by-products.

    targets_UTC  what each class weighs in the cross-entropy, class weights and smoothing included;
                 all zero for a token without a label
    """
    dtype = accumulation_dtype(logits_NUTC, halting_NU)
    log_y_NUTC = torch.log_softmax(logits_NUTC.to(dtype), -1)
    halting_NU = halting_NU.to(dtype)
    log_p_NU = F.logsigmoid(halting_NU).cumsum(0)
    log_w_NU = _log_exit_weights(log_p_NU)
    log_answer_UTC = torch.logsumexp(log_w_NU[:, :, None, None] + log_y_NUTC, 0)
    p_NU = log_p_NU.exp()
    # Written out: a matrix product may be rounded to TF32 or bfloat16 by a global switch of torch.
    regulariser_U = (alpha_N[:, None] * halting_NU.sigmoid() + beta_N[:, None] * p_NU).sum(0)
    if eta_N is None:
        supervision_UT = torch.zeros_like(log_answer_UTC[..., 0])
    else:
        eta_N11 = eta_N[:, None, None]
        cross_entropy_NUT = _cross_entropy(log_y_NUTC, targets_UTC)
        supervision_UT = torch.where(eta_N11 != 0, eta_N11 * cross_entropy_NUT, 0.0).sum(0)
    return Forward(
        task_UT=_cross_entropy(log_answer_UTC, targets_UTC),
        supervision_UT=supervision_UT,
        regulariser_U=regulariser_U,
        log_answer_UTC=log_answer_UTC,
        halting_p_NU=p_NU,
        exit_weights_NU=log_w_NU.exp(),
    )


def halting_backward(
    logits_NUTC: Tensor,
    halting_NU: Tensor,
    targets_UTC: Tensor,
    grad_task_UT: Tensor,
    grad_supervision_UT: Tensor,
    grad_regulariser_U: Tensor,
    *,
    alpha_N: Tensor,
    beta_N: Tensor,
    eta_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients by logits_NUTC and halting_NU, in closed form, in their dtypes.

    With the responsibilities r_n,c = w_n y_n,c / a_N,c, which sum to 1 over n, and
    R_n = sum_c t_c r_n,c and F_n = R_1 + ... + R_n:

        d task / d z_n,c = y_n,c R_n - t_c r_n,c
        d task / d u_j   = (1 - h_j) sum_{n=j}^{N-1} ( p_n F_n / (1 - p_n) - R_{n+1} )
        d reg  / d u_j   = (1 - h_j) ( alpha_j h_j + sum_{n>=j} beta_n p_n )

    Nothing is divided by h or p, and p_n <= h_j bounds the gradients: |dz| <= sum t, |du_j| <=
    (N-j) sum t.
    """
    dtype = accumulation_dtype(logits_NUTC, halting_NU)
    log_y_NUTC = torch.log_softmax(logits_NUTC.to(dtype), -1)
    log_p_NU = F.logsigmoid(halting_NU.to(dtype)).cumsum(0)
    log_r_NUTC = _log_responsibilities(logits_NUTC.to(dtype), _log_exit_weights(log_p_NU))
    # Where a class has no target, r may be 0 / 0; its product with t is 0.
    t_r_NUTC = torch.where(targets_UTC != 0, targets_UTC * log_r_NUTC.exp(), 0.0)
    R_NUT = t_r_NUTC.sum(-1)

    y_NUTC = log_y_NUTC.exp()
    grad_z_NUTC = grad_task_UT[..., None] * (y_NUTC * R_NUT[..., None] - t_r_NUTC)
    if eta_N is not None:
        pull_NUTC = y_NUTC * targets_UTC.sum(-1, keepdim=True) - targets_UTC
        grad_z_NUTC += eta_N[:, None, None, None] * grad_supervision_UT[..., None] * pull_NUTC
    # A token without a label has no gradient even where its padding holds NaN.
    labelled_UT = (targets_UTC != 0).any(-1)
    grad_z_NUTC = torch.where(labelled_UT[..., None], grad_z_NUTC, 0.0)

    pull_NU = (torch.where(labelled_UT, grad_task_UT, 0.0) * _pull_on_p(R_NUT, log_p_NU)).sum(-1)
    grad_u_NU = torch.sigmoid(-halting_NU.to(dtype)) * (
        _sum_from_each_block_on(pull_NU)
        + _regulariser_pull(halting_NU.to(dtype), log_p_NU, grad_regulariser_U, alpha_N, beta_N)
    )
    counted_U = labelled_UT.any(-1) | (grad_regulariser_U != 0)
    grad_u_NU = torch.where(counted_U, grad_u_NU, 0.0)
    return grad_z_NUTC.to(logits_NUTC.dtype), grad_u_NU.to(halting_NU.dtype)


def _log_responsibilities(logits_NUTC: Tensor, log_w_NU: Tensor) -> Tensor:
    """log r_n,c = log of w_n y_n,c over its sum over the blocks.

    Blocks are told apart by differences of logits, small ones of large numbers among them: so like
    is taken from like before anything joins in. At a logit of -1e8 log y_n itself has no digit
    left.
    """
    largest_UTC = logits_NUTC.amax(0)
    largest_UTC = torch.where(largest_UTC == -math.inf, 0.0, largest_UTC)
    most_NUT1 = logits_NUTC.amax(-1, keepdim=True)
    log_sum_NUT1 = torch.logsumexp(logits_NUTC - most_NUT1, -1, keepdim=True)
    gaps_NUTC = (logits_NUTC - largest_UTC) - (most_NUT1 - most_NUT1.amax(0))
    scores_NUTC = log_w_NU[:, :, None, None] + gaps_NUTC - log_sum_NUT1
    return scores_NUTC - torch.logsumexp(scores_NUTC, 0)


def _pull_on_p(R_NUT: Tensor, log_p_NU: Tensor) -> Tensor:
    """p_n d task / d p_n = p_n F_n / (1 - p_n) - R_{n+1}; 0 for the last block."""
    pull_NUT = torch.zeros_like(R_NUT)
    F_NUT = R_NUT.cumsum(0)[:-1]  # only positive terms: no cancellation
    log_p_NU1 = log_p_NU[:-1, :, None]
    stop_NU1 = -torch.expm1(log_p_NU1)
    # This is multiplied by 1 - h <= 1 - p later. Below 2e-34 (a halting logit above 77) it counts
    # as 0: the sum of the quotients over blocks and class weights must stay under 3e38.
    floor = torch.finfo(stop_NU1.dtype).tiny * 2**14
    odds_NU1 = torch.where(stop_NU1 < floor, 0.0, log_p_NU1.exp() / stop_NU1.clamp_min(floor))
    pull_NUT[:-1] = odds_NU1 * F_NUT - R_NUT[1:]
    return pull_NUT


def _regulariser_pull(
    halting_NU: Tensor, log_p_NU: Tensor, grad_U: Tensor, alpha_N: Tensor, beta_N: Tensor
) -> Tensor:
    beta_p_NU = _sum_from_each_block_on(beta_N[:, None] * log_p_NU.exp())
    return grad_U * (alpha_N[:, None] * halting_NU.sigmoid() + beta_p_NU)


def _log_exit_weights(log_p_NU: Tensor) -> Tensor:
    """log w_n = log p_{n-1} + sum_{m>n} log(1 - p_{m-1})."""
    log_reached_NU = torch.cat([torch.zeros_like(log_p_NU[:1]), log_p_NU[:-1]])
    log_kept_NU = torch.zeros_like(log_p_NU)
    log_kept_NU[:-1] = _sum_from_each_block_on(_log1mexp(log_p_NU[:-1]))
    return log_reached_NU + log_kept_NU


def _sum_from_each_block_on(x_NU: Tensor) -> Tensor:
    return x_NU.flip(0).cumsum(0).flip(0)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, accurate at both ends; -inf at 0, 0 at -inf."""
    near_zero = x > -math.log(2.0)
    return torch.where(near_zero, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _cross_entropy(log_q_UTC: Tensor, targets_UTC: Tensor) -> Tensor:
    # 0 * -inf is 0 here: a class at logit -inf costs nothing unless it has a target.
    return -torch.where(targets_UTC != 0, targets_UTC * log_q_UTC, 0.0).sum(-1)


def halting_exit(
    logits_NUTC: Tensor, halting_NU: Tensor, valid_UT: Tensor | None, *, delta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each unit may stop, its answer there, and its answer after all blocks.

    returns exit_block_U int64 from 1 to N, log_answer_UTC, full_log_answer_UTC
    """
    blocks = logits_NUTC.shape[0]
    logits_NUTC, halting_NU = exit_precision(logits_NUTC), exit_precision(halting_NU)
    log_p_U = torch.zeros_like(halting_NU[0])
    log_answer_UTC = torch.full_like(logits_NUTC[0], -math.inf)
    exit_block_U = torch.zeros_like(halting_NU[0], dtype=torch.int64)
    exit_answer_UTC = log_answer_UTC
    for block in range(1, blocks + 1):
        log_answer_UTC = accumulate(log_answer_UTC, log_p_U, logits_NUTC[block - 1])
        log_p_U = log_p_U + F.logsigmoid(halting_NU[block - 1])
        stop_U = may_stop(
            log_answer_UTC, log_p_U, valid_UT, blocks_left=blocks - block, delta=delta
        )
        stops_here_U = stop_U & (exit_block_U == 0)
        exit_block_U = torch.where(stops_here_U, block, exit_block_U)
        exit_answer_UTC = torch.where(stops_here_U[:, None, None], log_answer_UTC, exit_answer_UTC)
    return exit_block_U, exit_answer_UTC, log_answer_UTC


def exit_precision(x: Tensor) -> Tensor:
    """The precision the exit rule is computed in: float64, float32 where the device has none."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def accumulate(log_answer_UTC: Tensor, log_p_U: Tensor, logits_UTC: Tensor) -> Tensor:
    """log a_n from log a_{n-1} (-inf before the first block), log p_{n-1} (0 before it) and z_n.

    A row's result does not depend on the rows beside it, to the last bit. torch.logaddexp, sigmoid
    and pow do: on a CPU they compute the last few elements of a tensor in other instructions than
    the rest. exp, log, expm1, log1p, logsigmoid and log_softmax do not.
    """
    new_UTC = log_p_U[:, None, None] + torch.log_softmax(logits_UTC, -1)
    old_UTC = _log1mexp(log_p_U)[:, None, None] + log_answer_UTC
    high_UTC = torch.maximum(new_UTC, old_UTC)
    low_UTC = torch.minimum(new_UTC, old_UTC)
    gap_UTC = torch.where(low_UTC == -math.inf, low_UTC, low_UTC - high_UTC)
    return high_UTC + torch.log1p(gap_UTC.exp())


def may_stop(
    log_answer_UTC: Tensor,
    log_p_U: Tensor,
    valid_UT: Tensor | None,
    *,
    blocks_left: int,
    delta: float,
) -> Tensor:
    """Whether every valid token of a unit has an answer that the blocks left cannot change.

    The worst that d more blocks can do is to give the runner-up probability 1 with weight p_n each
    time. That leaves a gap of (1 - p_n)^d (1 + a* - a_runner_up) - 1 between the two. The published
    rule, a* (1 - p_n)^d >= a_runner_up + p_n d, bounds the runner-up more loosely and implies this
    one.
    """
    if blocks_left == 0:
        return torch.ones_like(log_p_U, dtype=torch.bool)
    best_UT2 = log_answer_UTC.topk(2, -1).values.exp()
    kept_U = torch.exp(blocks_left * _log1mexp(log_p_U))
    bound_UT = kept_U[:, None] * (1.0 + best_UT2[..., 0] - best_UT2[..., 1])
    stop_UT = bound_UT > 1.0 - delta + EXIT_SLACK
    return (stop_UT if valid_UT is None else stop_UT | ~valid_UT).all(-1)
