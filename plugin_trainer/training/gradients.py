"""What is done to gradients between the backward pass and the optimizer: measured and clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_to_norm(gradients: Sequence[Tensor], *, max_norm: float) -> Tensor:
    """Scale the gradients down to a global norm, in place; 0 does not clip. Returns the norm
    before, not read by the host. Call it without gradients being recorded.

    The same as torch.nn.utils.clip_grad_norm_, whose arithmetic this repeats without grouping the
    gradients anew at each step where all lie on one device in one dtype.
    """
    alike = _alike(gradients)
    if alike:
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    else:
        total = torch.nn.utils.get_total_norm([_values(gradient) for gradient in gradients])
    if max_norm > 0:
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        if alike:
            torch._foreach_mul_(gradients, scale)
        else:
            for gradient in gradients:
                gradient.mul_(scale.to(gradient.device))
    return total


def _values(gradient: Tensor) -> Tensor:
    """What a sparse gradient holds, each row once; a dense one as it is."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _alike(gradients: Sequence[Tensor]) -> bool:
    if not gradients:
        return False
    first = gradients[0]
    device, dtype = first.device, first.dtype
    return all(g.dtype == dtype and g.device == device and not g.is_sparse for g in gradients)
