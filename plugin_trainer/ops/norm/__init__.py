"""The Euclidean norm of all gradients of a model, measured in double."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import library
from plugin_trainer.ops.norm import reference

__all__ = ["grad_norm"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def grad_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The square root of the sum of all squares: 0-dim, float64, on the first gradient's device.

    gradients  float32, bfloat16, float16 or float64; any shapes, strides and devices. None of them:
               the norm is 0

    Squares and sums are in double, in an order that depends on the sizes alone: on a CPU the result
    is the same to the last bit for any number of threads. (torch's own norm on a CPU adds up in
    float32: it is off by 1e-4 to 1e-3 for 10 to 20 million elements.) What is not finite gives a
    norm that is not finite.

    Raises ValueError, naming the index, if a gradient is sparse, of another dtype, or has lost its
    memory.
    """
    for index, gradient in enumerate(gradients):
        _check(index, gradient)
    in_graph = torch.compiler.is_compiling()  # there is no memory yet; the compiled op looks at it
    with torch.no_grad():
        by_device: dict[torch.device, list[Tensor]] = {}
        for gradient in gradients:
            by_device.setdefault(gradient.device, []).append(gradient)
        if in_graph:
            return joined([_norm(some) for some in by_device.values()])
        try:
            if not all(library.has_kernels_for(device.type) for device in by_device):
                _check_memory(gradients)
            return joined([_norm(some) for some in by_device.values()])
        except RuntimeError:
            _check_memory(gradients)
            raise


def joined(norms: Sequence[Tensor]) -> Tensor:
    """The norm of everything from the norms of its parts, on the first part's device."""
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    if len(norms) == 1:
        return norms[0]
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def _norm(gradients: list[Tensor]) -> Tensor:
    if library.has_kernels_for(gradients[0].device.type):
        norm: Tensor = torch.ops.ptrain.grad_norm(gradients)
        return norm
    return reference.grad_norm(gradients)


def _check_memory(gradients: Sequence[Tensor]) -> None:
    for index, gradient in enumerate(gradients):
        strides = zip(gradient.shape, gradient.stride(), strict=True)
        last = gradient.storage_offset() + sum((size - 1) * stride for size, stride in strides)
        bytes_held = gradient.untyped_storage().nbytes()
        if gradient.numel() > 0 and (last + 1) * gradient.element_size() > bytes_held:
            raise ValueError(
                f"gradient {index} has lost its memory: it has {gradient.numel()} elements, its "
                f"storage {bytes_held} bytes"
            )


def _check(index: int, gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise ValueError(f"gradient {index} is sparse ({gradient.layout}); make it dense")
    if gradient.dtype not in _DTYPES:
        raise ValueError(
            f"gradient {index} is {gradient.dtype}; it must be one of "
            + ", ".join(map(str, _DTYPES))
        )
