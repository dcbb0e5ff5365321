"""The compiled moving average: what it takes, its plans, and what torch.compile must know."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import library

# What the kernels average, and what they copy. Complex weights are left to the reference.
DTYPES = frozenset(
    {torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


def takes(shadow: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can read and write this pair's memory as it lies there.

    Not that of a subclass which computes in its own way (DTensor), nor of a negated view.
    """
    if not (weight.dtype in DTYPES and _plain(weight) and _plain(shadow)):
        return False
    return weight.is_cpu or _lie_alike(shadow, weight)


def _plain(tensor: Tensor) -> bool:
    return (
        (tensor.is_cpu or (tensor.is_cuda and library.has_kernels_for("cuda")))
        and tensor.layout is torch.strided
        and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not tensor.is_neg()
    )


def has_memory(tensor: Tensor) -> bool:
    """Whether a plain tensor's storage is as large as it: `resize_(0)` gives memory back."""
    if tensor.numel() == 0 or not _plain(tensor):
        return True
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in strides)
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _lie_alike(shadow: Tensor, weight: Tensor) -> bool:
    """Whether both fill their memory without gaps, in one order: as a GPU's kernel reads."""
    if shadow.device != weight.device or shadow.stride() != weight.stride():
        return False
    return torch.ops.aten.is_non_overlapping_and_dense(weight)


def update_(shadows: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> bool:
    """Average two lists; False if the kernels refuse them, and then nothing is changed."""
    if not shadows:
        return not weights
    try:
        with torch.no_grad():
            torch.ops.ptrain.ema_update_(shadows, weights, decay)
    except RuntimeError:
        return False
    return True


class Plan:
    """Pairs that are averaged again and again, checked once; the compiled ops keep hold of them.

    Where their memory is, is asked at each call, so `weight.data = other` is followed. Raises
    RuntimeError if the pairs do not fit, and nothing is changed then.
    """

    def __init__(self, shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        number = torch.ops.ptrain.ema_plan(shadows, weights)
        self._number: int = number
        self._update = torch.ops.ptrain.ema_update_plan_.default
        weakref.finalize(self, torch.ops.ptrain.ema_free_plan, number).atexit = False

    def update(self, decay: float | Tensor) -> None:
        """Average all pairs; a decay that is a tensor is read on their CUDA device.

        Raises RuntimeError, and changes nothing, if a tensor has got another shape, layout, dtype
        or device.
        """
        if isinstance(decay, Tensor):
            torch.ops.ptrain.ema_update_plan_by_(self._number, decay.to(torch.float64))
        else:
            self._update(self._number, decay)


def register() -> None:
    """Tell torch.compile what the op does to the shapes it sees: nothing, if they fit."""
    torch.library.register_fake("ptrain::ema_update_", _fake_update)


def _fake_update(shadows: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    if len(shadows) != len(weights):
        raise RuntimeError(f"ema_update_: {len(shadows)} shadows for {len(weights)} weights")
    for index, (shadow, weight) in enumerate(zip(shadows, weights, strict=True)):
        if shadow.shape != weight.shape or shadow.device != weight.device:
            raise RuntimeError(
                f"ema_update_: shadow {index} differs from its weight in shape or device"
            )
        # One meta tensor in a list brings the whole call here, and the others would stand still.
        if shadow.device != shadows[0].device:
            raise RuntimeError(f"ema_update_: shadow {index} is on another device than shadow 0")
