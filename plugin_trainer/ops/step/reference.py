"""The step in torch's own operations: the arithmetic that the kernels repeat, on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from plugin_trainer.ops import norm as norms
from plugin_trainer.ops.step.inputs import (
    check_apart,
    check_gradient,
    check_memory,
    check_state,
    has_memory,
)

Scalar: TypeAlias = float | Tensor  # a Tensor (0-dim, float64) where the host must not read it


def fused_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    shadows: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    norm: Tensor | None,
    max_norm: float,
    zero_grads: bool,
) -> None:
    """Clip, AdamW and average of tensors that `ops.fused_step_` or an optimizer has checked.

    A gradient that is None: the weight stays, and only its shadow moves. On a CPU the host decides
    whether the norm is finite; elsewhere, and under torch.compile, every write is masked.
    """
    on_host = not torch.compiler.is_compiling()
    finite: Tensor | None = None
    clip: Scalar = 1.0
    if norm is not None:
        if on_host and norm.device.type == "cpu":
            if not bool(norm.isfinite()):
                _zero(grads if zero_grads else ())
                return
        else:
            finite = norm.isfinite()
        if max_norm > 0.0:
            clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    rows: Sequence[Sequence[Scalar]]
    if on_host and hyper.device.type == "cpu":
        rows = hyper.tolist()
    else:
        rows = [row.unbind() for row in hyper.unbind()]
    for i, param in enumerate(params):
        row = rows[groups[i]]
        grad = grads[i]
        if grad is not None:
            _adamw_(param, grad, exp_avgs[i], exp_avg_sqs[i], steps[i], row, clip, finite)
        if shadows and shadows[i].numel() == param.numel():
            target = param.to(shadows[i].dtype)
            _write(shadows[i], _blended(shadows[i], target, 1.0 - row[5]), finite)
    _zero(grads if zero_grads else ())


def _adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    row: Sequence[Scalar],
    clip: Scalar,
    finite: Tensor | None,
) -> None:
    learning_rate, beta1, beta2, eps, weight_decay, _ = row
    count = step + 1.0
    step_size = learning_rate / (1.0 - beta1 ** count.double())
    root_correction = 1.0 / (1.0 - beta2 ** count.double()).sqrt()
    g = grad.to(exp_avg.dtype) * clip
    m = _blended(exp_avg, g, 1.0 - beta1)
    v = beta2 * exp_avg_sq + (1.0 - beta2) * g * g
    denominator = v.sqrt() * root_correction + eps
    kept = param.to(exp_avg.dtype) * (1.0 - learning_rate * weight_decay)
    _write(param, kept - step_size * m / denominator, finite)
    _write(exp_avg, m, finite)
    _write(exp_avg_sq, v, finite)
    _write(step, count, finite)


def _blended(old: Tensor, new: Tensor, weight: Scalar) -> Tensor:
    """old + weight * (new - old), from the nearer end, so that a weight of 1 gives exactly new."""
    if isinstance(weight, Tensor):
        from_old = weight < 0.5
        factor = torch.where(from_old, weight, weight - 1.0)
        return torch.where(from_old, old, new) + factor * (new - old)
    return old + weight * (new - old) if weight < 0.5 else new + (weight - 1.0) * (new - old)


def _write(target: Tensor, value: Tensor, finite: Tensor | None) -> None:
    if finite is not None:
        value = torch.where(finite, value.to(target.dtype), target)
    target.copy_(value)


def _zero(grads: Sequence[Tensor | None]) -> None:
    for grad in grads:
        if grad is not None:
            grad.zero_()


class Plan:
    """The same calls as `native.Plan`, for tensors that the kernels cannot take."""

    def __init__(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        steps: Sequence[Tensor],
        shadows: Sequence[Tensor],
        groups: Sequence[int],
    ) -> None:
        self._forms = [(param.shape, param.dtype, param.device) for param in params]
        self._states = (params, exp_avgs, exp_avg_sqs, steps)
        self._shadows = shadows
        self._groups = groups
        self._gradients: Sequence[Tensor | None] = [None] * len(params)

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """The gradients of the next step, one for each parameter; None: it has none this time."""
        self._gradients = gradients

    def drop_gradients(self) -> None:
        """Lets go of the gradients, so that their memory can be used."""
        self._gradients = [None] * len(self._gradients)

    def norm(self) -> Tensor:
        """The norm of the gradients: 0-dim, float64."""
        some = [gradient for gradient in self._gradients if gradient is not None]
        for gradient in some:
            if not has_memory(gradient):
                raise RuntimeError("a gradient has lost its memory")
        if not some:
            return self._states[0][0].new_zeros((), dtype=torch.float64)
        return norms.grad_norm(some)

    def check(self, *, zero_grads: bool) -> None:
        """Raises RuntimeError if a tensor is not what it was: `param.data = other` can do that."""
        params, exp_avgs, exp_avg_sqs, steps = self._states
        if self._forms != [(param.shape, param.dtype, param.device) for param in params]:
            raise RuntimeError("a parameter has got another shape, dtype or device")
        written: list[tuple[str, Tensor]] = []
        gradients: list[tuple[str, Tensor]] = []
        try:
            for i, param in enumerate(params):
                moments = [exp_avgs[i], exp_avg_sqs[i]] if steps[i].numel() else []
                if self._shadows and self._shadows[i].numel():
                    moments.append(self._shadows[i])
                for tensor in moments:
                    check_state("a part of a parameter", tensor, param)
                written += [("a tensor", tensor) for tensor in (param, *moments, steps[i])]
                gradient = self._gradients[i]
                if gradient is not None:
                    check_gradient("a gradient", gradient, param)
                    (written if zero_grads else gradients).append(("a gradient", gradient))
            for name, tensor in (*written, *gradients):
                check_memory(name, tensor)
            check_apart(written, gradients)
        except ValueError as error:
            raise RuntimeError(str(error)) from error

    def apply(
        self, hyper: Tensor, norm: Tensor, *, max_norm: float, average: bool, zero_grads: bool
    ) -> None:
        """The step with these gradients; `average` says whether the shadows move."""
        self.check(zero_grads=zero_grads)
        params, exp_avgs, exp_avg_sqs, steps = self._states
        shadows = self._shadows if average else ()
        fused_step_(
            params, self._gradients, exp_avgs, exp_avg_sqs, steps, shadows, self._groups,
            hyper, norm, max_norm, zero_grads,
        )  # fmt: skip
