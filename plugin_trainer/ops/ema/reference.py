"""The moving average in torch's multi-tensor operations: the arithmetic that the kernels repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Converting bfloat16 weights needs a float32 copy of them; taken in groups of 64 MiB, not of a
# model.
GROUP_ELEMENTS = 1 << 24


def ema_update_(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], *, decay: float | Tensor
) -> None:
    """shadow += (1 - decay) * (weight - shadow), in the shadow's dtype; integers are copied.

    Expects what `plugin_trainer.ops.ema_update_` checks: pairs of equal shape and device.
    """
    for group_shadows, group_weights in _groups(shadows, weights):
        first = group_shadows[0]
        if not (first.is_floating_point() or first.is_complex()):
            torch._foreach_copy_(group_shadows, group_weights)
        elif group_weights[0].dtype == first.dtype:
            _lerp_(group_shadows, group_weights, decay)
        else:
            for some_shadows, some_weights in _bounded(group_shadows, group_weights):
                converted = [torch.empty_like(shadow) for shadow in some_shadows]
                torch._foreach_copy_(converted, some_weights)
                _lerp_(some_shadows, converted, decay)


def _lerp_(shadows: list[Tensor], weights: list[Tensor], decay: float | Tensor) -> None:
    device = shadows[0].device
    if isinstance(decay, Tensor) and decay.device == device and device.type != "cpu":
        # torch._foreach_lerp_ would read the tensor on the host; a 0-dim factor of mul stays there.
        step = torch._foreach_sub(weights, shadows)
        torch._foreach_mul_(step, 1.0 - decay)
        torch._foreach_add_(shadows, step)
    else:
        torch._foreach_lerp_(shadows, weights, 1.0 - float(decay))


def _groups(
    shadows: Sequence[Tensor], weights: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of one device and one dtype together, as the multi-tensor operations want them."""
    groups: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
    for shadow, weight in zip(shadows, weights, strict=True):
        group = groups.setdefault((weight.device, weight.dtype), ([], []))
        group[0].append(shadow)
        group[1].append(weight)
    yield from groups.values()


def _bounded(
    shadows: list[Tensor], weights: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    start = elements = 0
    for end, shadow in enumerate(shadows):
        if elements and elements + shadow.numel() > GROUP_ELEMENTS:
            yield shadows[start:end], weights[start:end]
            start, elements = end, 0
        elements += shadow.numel()
    yield shadows[start:], weights[start:]
