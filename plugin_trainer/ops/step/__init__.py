"""One optimizer step in one pass over memory: clipping, AdamW, the moving average, zeroing.

`FusedAdamW` is the optimizer; `fused_step_` the operation below it, on lists of tensors, for
torch.compile and for whoever keeps the states himself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import library
from plugin_trainer.ops.step import reference
from plugin_trainer.ops.step.inputs import check_lists
from plugin_trainer.ops.step.optimizer import FusedAdamW

__all__ = ["FusedAdamW", "fused_step_"]


def fused_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    hyper: Tensor,
    groups: Sequence[int] | None = None,
    shadows: Sequence[Tensor] = (),
    norm: Tensor | None = None,
    max_norm: float = 0.0,
    zero_grads: bool = False,
) -> None:
    """Clip, AdamW and the moving average of all tensors, in place and in one pass.

    params       P tensors, float32, bfloat16, float16 or float64, on one device; dense memory in
                 any order of dimensions
    grads        of the same dtypes and shapes
    exp_avgs, exp_avg_sqs
                 the moments: float64 for float64, otherwise float32; strides as their parameters'
    steps        P times one float32: the updates so far; 1 is added
    hyper        (G, 6) float64: learning rate, beta1, beta2, eps, weight decay and the decay of the
                 average, which is not looked at without shadows. On the parameters' device
    groups       P rows of hyper; None: all take row 0
    shadows      none, or P averages with the dtype and the strides of the moments;
                 `torch.empty(0)` for a parameter without one
    norm         the gradients' norm, 0-dim float64, as `grad_norm` gives it. If it is not finite,
                 nothing is written, and the host does not read it on a device to know. None: not
                 looked at, and nothing is clipped
    max_norm     gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0: not
    zero_grads   set the gradients to zero, also when the norm is not finite

    The gradients are not scaled in memory. Arithmetic is in the moments' dtype; the order is that
    of torch.optim.AdamW. Raises ValueError, naming the list and the index, before anything is
    written: also where two of the tensors share memory (gradients may, unless they are zeroed), or
    one has lost it. Meant for torch.compile too: a new value of hyper or norm does not compile
    again.
    """
    rows = [0] * len(params) if groups is None else list(groups)
    check_lists(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        shadows,
        rows,
        hyper,
        norm,
        zero_grads=zero_grads,
    )
    if not max_norm >= 0.0:
        raise ValueError(f"max_norm is {max_norm}; it must be 0 or more")
    if max_norm > 0.0 and norm is None:
        raise ValueError(f"max_norm is {max_norm}, but there is no norm; give grad_norm(grads)")
    if not params:
        return
    with torch.no_grad():
        step = reference.fused_step_
        if library.has_kernels_for(params[0].device.type):
            step = torch.ops.ptrain.fused_step_
        step(
            params, grads, exp_avgs, exp_avg_sqs, steps, shadows, rows, hyper, norm,
            float(max_norm) if math.isfinite(max_norm) else math.inf, zero_grads,
        )  # fmt: skip
    if not torch.compiler.is_compiling():
        # So that autograd notices a backward through what has changed since. 45 ns a tensor.
        torch.autograd.graph.increment_version([*params, *shadows])
