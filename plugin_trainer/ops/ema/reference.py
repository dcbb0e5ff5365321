"""The moving average in torch's multi-tensor operations: the arithmetic that the kernels repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Converting 16-bit weights needs a float32 copy of them, made group by group. On a CPU 2 MiB stay
# in its cache: 7 ms for 22 M weights on one core, against 34 ms with 64 MiB. A GPU wants few
# launches.
CPU_GROUP_ELEMENTS = 1 << 19
GROUP_ELEMENTS = 1 << 24


Group = tuple[list[Tensor], list[Tensor]]


def ema_update_(groups: Sequence[Group], *, decay: float | Tensor) -> None:
    """shadow += (1 - decay) * (weight - shadow), in the shadow's dtype; integers are copied.

    groups  shadows and weights as `grouped` gives them, of pairs that
            `plugin_trainer.ops.ema_update_` has checked
    """
    for group_shadows, group_weights in groups:
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
    in_graph = torch.compiler.is_compiling()
    if isinstance(decay, Tensor) and decay.device == device and (device.type != "cpu" or in_graph):
        # torch._foreach_lerp_ would read the tensor on the host; a 0-dim factor of mul stays there.
        step = torch._foreach_sub(weights, shadows)
        torch._foreach_mul_(step, 1.0 - decay)
        torch._foreach_add_(shadows, step)
    else:
        torch._foreach_lerp_(shadows, weights, 1.0 - float(decay))


def grouped(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Group]:
    """Pairs of one device and one dtype together, as the multi-tensor operations want them."""
    groups: dict[object, Group] = {}
    for shadow, weight in pairs:
        group = groups.setdefault((weight.device, weight.dtype), ([], []))
        group[0].append(shadow)
        group[1].append(weight)
    return list(groups.values())


def _bounded(
    shadows: list[Tensor], weights: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    limit = CPU_GROUP_ELEMENTS if shadows[0].device.type == "cpu" else GROUP_ELEMENTS
    group: tuple[list[Tensor], list[Tensor]] = ([], [])
    elements = 0
    for pair in zip(shadows, weights, strict=True):
        for shadow, weight in _pieces(*pair, limit=limit):
            if group[0] and elements + shadow.numel() > limit:
                yield group
                group, elements = ([], []), 0
            group[0].append(shadow)
            group[1].append(weight)
            elements += shadow.numel()
    yield group


def _pieces(shadow: Tensor, weight: Tensor, *, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    if shadow.numel() <= limit or not (shadow.is_contiguous() and weight.is_contiguous()):
        yield shadow, weight
    else:
        yield from zip(shadow.view(-1).split(limit), weight.view(-1).split(limit), strict=True)
