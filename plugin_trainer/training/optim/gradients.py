"""What is done to gradients between the backward pass and the optimizer: measured and clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import grad_norm, library


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, 0-dim, not read by the host.

    In float64 where the compiled kernels are: torch sums a CPU tensor's squares in float32, which
    is off by 1e-3 for 23 M of them.
    """
    if not _alike(gradients):
        return torch.nn.utils.get_total_norm([_values(gradient) for gradient in gradients])
    if gradients[0].device.type == "cpu" and library.find() is not None:
        return grad_norm(gradients)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_to_norm(gradients: Sequence[Tensor], norm: Tensor, *, max_norm: float) -> None:
    """Scale gradients of that norm down to `max_norm`, in place; 0 does not clip.

    As torch.nn.utils.clip_grads_with_norm_, without grouping the gradients anew at each step where
    all lie on one device in one dtype. Call it without gradients being recorded.
    """
    if max_norm <= 0:
        return
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    if _alike(gradients):
        torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
        return
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device))


def _values(gradient: Tensor) -> Tensor:
    """What a sparse gradient holds, each row once; a dense one as it is."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _alike(gradients: Sequence[Tensor]) -> bool:
    if not gradients:
        return False
    first = gradients[0]
    device, dtype = first.device, first.dtype
    return all(g.dtype == dtype and g.device == device and not g.is_sparse for g in gradients)
