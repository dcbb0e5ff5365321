"""Exponential moving average of a model's weights: every tensor of the model in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import library
from plugin_trainer.ops.ema import reference

__all__ = ["PreparedEma", "ema_decay", "ema_update_", "shadow_dtype"]

_SHADOW_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


def shadow_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of this dtype are averaged.

    float32 for float32, bfloat16 and float16; integers, bool and the others keep their own.
    """
    return _SHADOW_DTYPES.get(dtype, dtype)


def ema_decay(updates: int, *, decay: float, warmup: bool) -> float:
    """The decay to use for the next update.

    updates  how many updates the average has had so far, 0 for the first
    warmup   rise as min(decay, (1 + updates) / (10 + updates)): 0.1 at the first update, so that a
             young average is not mostly the untrained weights. A decay of 0.999 is reached after
             8990 updates

    Raises ValueError if updates is negative or decay is not in [0, 1].
    """
    if updates < 0:
        raise ValueError(f"updates is {updates}; it counts from 0")
    _check_decay(decay)
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


def ema_update_(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], *, decay: float | Tensor
) -> None:
    """shadow <- decay * shadow + (1 - decay) * weight, in place, for every pair.

    shadows  float32 for float32, bfloat16 and float16 weights, otherwise the weight's own dtype
    weights  the same number, shapes and devices; any strides. Integer and bool tensors (step
             counters, masks) are copied, not averaged
    decay    in [0, 1]; a 0-dim tensor on a device is used there and never read by the host. Give it
             in float64: 1 - 0.999 in float32 is off by 1.3e-5 of itself

    A pair that is given twice (tied weights) is updated once. What is not finite stays so.

    Raises ValueError, naming the index, if a pair does not match in shape, device or dtype, if a
    shadow is the weight itself, or if one shadow is given for two different weights; nothing is
    changed then.
    """
    PreparedEma(shadows, weights)(decay)


class PreparedEma:
    """`ema_update_` of the same tensors again and again: the pairs are checked and sorted once.

    The tensors are held, not their memory: what they are set to later is what is averaged. Raises
    as `ema_update_` does, for the pairs when it is made and for the decay when it is called.
    """

    def __init__(self, shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        if len(shadows) != len(weights):
            raise ValueError(f"{len(shadows)} shadows for {len(weights)} weights")
        self._groups = reference.grouped(_checked_pairs(shadows, weights))
        self._ema_update_ = (library.find() or reference).ema_update_

    def __call__(self, decay: float | Tensor) -> None:
        """shadow <- decay * shadow + (1 - decay) * weight, in place, for every pair."""
        _check_decay(decay)
        with torch.no_grad():
            self._ema_update_(self._groups, decay=decay)


def _check_decay(decay: float | Tensor) -> None:
    if isinstance(decay, Tensor):
        if decay.dim() != 0:
            raise ValueError(f"decay is a tensor of shape {tuple(decay.shape)}; it must be 0-dim")
    elif not (math.isfinite(decay) and 0.0 <= decay <= 1.0):
        raise ValueError(f"decay is {decay}; it must be between 0 and 1, usually 0.99 to 0.9999")


def _checked_pairs(
    shadows: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The pairs to update, each once."""
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for index, (shadow, weight) in enumerate(zip(shadows, weights, strict=True)):
        if shadow.shape != weight.shape or shadow.device != weight.device:
            raise ValueError(_mismatch(index, shadow, weight))
        if shadow.dtype != _SHADOW_DTYPES.get(weight.dtype, weight.dtype):
            raise ValueError(_wrong_dtype(index, shadow, weight))
        address = shadow.data_ptr()
        if address == 0:  # empty
            continue
        if address == weight.data_ptr():
            raise ValueError(
                f"shadow {index} shares its memory with its weight; make it a copy: weight.clone()"
            )
        _, first = pairs.setdefault(address, (shadow, weight))
        if first is not weight and first.data_ptr() != weight.data_ptr():
            raise ValueError(f"shadow {index} was already given, for another weight")
    return list(pairs.values())


def _mismatch(index: int, shadow: Tensor, weight: Tensor) -> str:
    return (
        f"shadow {index} has shape {tuple(shadow.shape)} on {shadow.device}, "
        f"its weight has shape {tuple(weight.shape)} on {weight.device}"
    )


def _wrong_dtype(index: int, shadow: Tensor, weight: Tensor) -> str:
    want = shadow_dtype(weight.dtype)
    message = f"shadow {index} is {shadow.dtype} for a {weight.dtype} weight; it must be {want}"
    if shadow.dtype in (torch.bfloat16, torch.float16):
        # Half an ulp of bfloat16 is 2e-3 of the value, of float16 2.4e-4: the step is rounded away.
        message += (
            ": an average in this precision stands still, since at a decay of 0.999 a step is a "
            "thousandth of the difference, less than half of its last digit"
        )
    return message
