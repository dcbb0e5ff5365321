"""Ties the halting loss's forward pass to its closed-form backward pass."""

# N blocks, U halting units, T tokens per unit, C classes

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plugin_trainer.ops.halting import reference
from plugin_trainer.ops.halting.inputs import NO_SECOND_DERIVATIVE


class HaltingFunction(torch.autograd.Function):
    """The fields of `reference.Forward`; only the first three are differentiable, and only once.

    Both passes read bfloat16 and float16 as they are and compute in float32: autocast is off
    inside.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_NUTC: Tensor,
        halting_NU: Tensor,
        targets_UTC: Tensor,
        alpha_N: Tensor,
        beta_N: Tensor,
        eta_N: Tensor | None,
    ) -> reference.Forward:
        """Compute the unreduced loss."""
        with torch.autocast(logits_NUTC.device.type, enabled=False):
            fields = reference.halting_forward(
                logits_NUTC, halting_NU, targets_UTC, alpha_N=alpha_N, beta_N=beta_N, eta_N=eta_N
            )
        out = reference.Forward(*fields)
        ctx.mark_non_differentiable(out.log_answer_UTC, out.halting_p_NU, out.exit_weights_NU)
        ctx.save_for_backward(logits_NUTC, halting_NU, targets_UTC, alpha_N, beta_N, eta_N)
        return out

    @staticmethod
    def backward(
        ctx: Any,
        grad_task_UT: Tensor,
        grad_supervision_UT: Tensor,
        grad_regulariser_U: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients by the two kinds of logits."""
        # torch's own once_differentiable lets create_graph=True pass, and a penalty on the gradient
        # would then silently lack this loss's second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        logits_NUTC, halting_NU, targets_UTC, alpha_N, beta_N, eta_N = ctx.saved_tensors
        with torch.autocast(logits_NUTC.device.type, enabled=False):
            grad_z, grad_u = reference.halting_backward(
                logits_NUTC,
                halting_NU,
                targets_UTC,
                grad_task_UT,
                grad_supervision_UT,
                grad_regulariser_U,
                alpha_N=alpha_N,
                beta_N=beta_N,
                eta_N=eta_N,
            )
        needs_z, needs_u = ctx.needs_input_grad[:2]
        return (grad_z if needs_z else None, grad_u if needs_u else None, None, None, None, None)
