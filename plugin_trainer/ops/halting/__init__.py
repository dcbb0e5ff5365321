"""Adaptive depth: the loss that teaches a network when to stop, and the rule by which it stops."""

# N blocks, R rows, B sentences, T tokens, C classes, U halting units (rows, or sentences)

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plugin_trainer.ops.halting import native, reference
from plugin_trainer.ops.halting.composed import composed_loss
from plugin_trainer.ops.halting.inputs import (
    OUTPUTS,
    Count,
    PerBlock,
    Settings,
    as_NUTC,
    bits_of,
    check_choices,
    check_inplace,
    check_mask,
    check_mode,
    check_pair,
    check_weights,
)
from plugin_trainer.ops.halting.reference import accumulation_dtype

__all__ = ["HaltingExit", "HaltingLoss", "halting_exit", "halting_loss"]

ALL_OUTPUTS = tuple(OUTPUTS)
ALL_BITS = bits_of(ALL_OUTPUTS)


class HaltingLoss(NamedTuple):
    """What `halting_loss` returns; float32, or float64 if an input is.

    loss          task_loss + supervision + tau * regulariser: what is differentiated
    task_loss     cross-entropy of the accumulated answer, alone
    supervision   the deep-supervision term, sum_n eta_n CE(y_n); 0 without eta
    regulariser   the halting regulariser, not yet multiplied by tau
    log_answer    [*rows, C], log a_N, a log-probability; detached
    halting_p     [N, *units], p_n: the weight that everything after block n still has; detached
    exit_weights  [N, *units], w_n: what block n weighs in the answer, summing to 1; detached

    The first four are 0-dim. With reduction="none", task_loss and supervision have the shape of the
    rows, regulariser and loss that of the halting units (a unit's loss sums over its tokens). A
    by-product that was not asked for has no elements.
    """

    loss: Tensor
    task_loss: Tensor
    supervision: Tensor
    regulariser: Tensor
    log_answer: Tensor
    halting_p: Tensor
    exit_weights: Tensor


class HaltingExit(NamedTuple):
    """What `halting_exit` returns.

    exit_block       [*units] int64, from 1 to N: the block after which a unit stops
    log_answer       [*rows, C], the accumulated answer there; float32, or float64 if an input is
    full_log_answer  [*rows, C], the answer after all N blocks
    """

    exit_block: Tensor
    log_answer: Tensor
    full_log_answer: Tensor


def halting_loss(
    logits: Tensor,
    halting_logits: Tensor,
    labels: Tensor,
    *,
    tau: float,
    alpha: PerBlock | None = None,
    beta: PerBlock | None = None,
    eta: PerBlock | None = None,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reg_mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: Count | tuple[Count, Count] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    outputs: Sequence[str] = ALL_OUTPUTS,
    inplace: bool = False,
) -> HaltingLoss:
    """Cross-entropy of the answer accumulated over all blocks, plus the price of going on.

    With y_n = softmax(z_n), h_n = sigmoid(u_n), p_n = h_1 ... h_n (p_0 = 1), a_0 = 0 and
    a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}:

        loss = CE(a_N) + sum_n eta_n CE(y_n) + tau * sum_n (alpha_n h_n + beta_n p_n)

    Sources: Eyzaguirre & Soto, DACT, CVPR 2020 (accumulation; sum of p: alpha=0, beta=1);
    Eyzaguirre et al., DACT-BERT, arXiv 2109.11745 (sum of h: alpha=1, beta=0, the default).
    Log-space forward, closed-form backward, float32 inside (float64 if an input is); once
    differentiable. The last halting logit feels the regulariser only.

    logits           z, [N, *rows, C], any float dtype, C >= 2; rows are [R] or [B, T]
    halting_logits   u, [N, *rows]: a decision per row; or [N, B] with logits [N, B, T, C]: a
                     decision per sentence, labels per token. h near 1 goes on, h near 0 stops;
                     +-inf allowed
    labels           [*rows] class numbers, or [*rows, C] probabilities (no gradient flows to them;
                     a row of zeros is ignored)
    tau              weight of the regulariser, >= 0; at 0 it is reported and adds nothing
    alpha            weight of h_n: a number for all blocks, or N of them (a tensor on the device is
                     not copied there each time); default 1
    beta             weight of p_n, likewise; default 0
    eta              weight of each block's own cross-entropy, likewise; default none
    ignore_index, class_weight, label_smoothing   as in torch.nn.functional.cross_entropy
    reg_mask         bool, [*units] or [*rows] (a sentence counts if any token does): the units that
                     are regularised; default: those with a label
    reduction        "mean" divides the task loss by the weight of the labelled rows (as
                     cross_entropy does) and the regulariser by the number of regularised units
    normalizer       replaces the denominators of "mean" by the counts of a whole step, so that
                     micro-batches add up to the big batch; a pair gives (rows, units) when they
                     differ
    empty            a mean over nothing is NaN, as cross_entropy's, or "zero"
    outputs          the by-products to make, of "log_answer", "halting_p" and "exit_weights";
                     default all. () saves their memory
    inplace          write the gradient by the logits over the logits: no memory is needed for it.
                     Do not use the logits afterwards; whoever saved them for backward is told. They
                     must be no leaf that requires grad, and dense. `loss` alone can be
                     differentiated, and once. Logits that require no grad hold the gradient of
                     `loss` after the call. The reference and torch.compile ignore it

    Compiled kernels compute both gradients in the forward pass, in one pass over the logits.

    Raises ValueError for shapes, dtypes and settings that do not fit, IndexError for a label that
    is no class (on a CPU; elsewhere the loss is NaN, for the host does not look), RuntimeError in a
    backward pass that asks for what cannot be had (a second derivative, or see inplace), and inside
    torch.func's transforms and forward-mode differentiation.
    """
    check_choices(tau, label_smoothing, reduction, normalizer, empty)
    check_mode(logits, halting_logits)
    settings = Settings(
        tau,
        alpha,
        beta,
        eta,
        ignore_index,
        class_weight,
        label_smoothing,
        reg_mask,
        reduction,
        normalizer,
        empty,
    )
    if not (alpha is beta is eta is class_weight is normalizer is None):
        check_weights(logits, settings)
    wanted = ALL_BITS if outputs is ALL_OUTPUTS else bits_of(outputs)
    if inplace:
        check_inplace(logits, reduction)
    fields = native.loss(logits, halting_logits, labels, settings, wanted=wanted, inplace=inplace)
    if fields is not None:
        return HaltingLoss(*fields)
    result = HaltingLoss(*composed_loss(logits, halting_logits, labels, settings))
    if wanted == ALL_BITS:
        return result
    left_out = {name: result.loss.new_empty(0) for name, bit in OUTPUTS.items() if not wanted & bit}
    return result._replace(**left_out)


@torch.no_grad()
def halting_exit(
    logits: Tensor,
    halting_logits: Tensor,
    *,
    delta: float = 0.0,
    valid: Tensor | None = None,
) -> HaltingExit:
    """The block after which each unit may stop, and its answers there and after all blocks.

    A unit stops after block n, with d = N - n blocks left, when no continuation can change its
    answer:

        (1 - p_n)^d (1 + a*_n - a_runner_up,n)  >  1 - delta + 1e-6

    and always after block N. This is the exact worst case that the halting rule of Eyzaguirre &
    Soto (DACT, CVPR 2020) bounds, so it stops wherever that one does. At delta = 0 the answer's
    class is that of full depth; a larger delta is faster and promises less. A unit's result depends
    on no other unit of the batch, to the last bit.

    logits          z, [N, *rows, C], C >= 2; rows are [R] or [B, T]
    halting_logits  u, [N, *rows], or [N, B] with logits [N, B, T, C]: a sentence stops when every
                    valid token may
    delta           from 0, lossless, to 1
    valid           bool, [*rows]: tokens that are no padding; default all. A unit without any stops
                    at 1

    Raises ValueError for shapes that do not fit, a single class, or a delta outside of [0, 1].
    """
    check_pair(logits, halting_logits)
    if not 0.0 <= delta <= 1.0:
        raise ValueError(f"delta is {delta}; it goes from 0 (lossless) to 1")
    rows, units = logits.shape[1:-1], halting_logits.shape[1:]
    if valid is not None:
        check_mask("valid", valid, [rows])
    if native.takes(logits, halting_logits):
        return HaltingExit(*native.exits(logits, halting_logits, valid, delta))
    logits_NUTC = as_NUTC(logits, halting_logits)
    if valid is not None:
        valid = valid.reshape(logits_NUTC.shape[1:-1])
    exit_block_U, log_answer_UTC, full_UTC = reference.halting_exit(
        logits_NUTC, halting_logits.flatten(1), valid, delta=delta
    )
    dtype = accumulation_dtype(logits, halting_logits)
    return HaltingExit(
        exit_block_U.reshape(units),
        log_answer_UTC.to(dtype).reshape(logits.shape[1:]),
        full_UTC.to(dtype).reshape(logits.shape[1:]),
    )
