"""In which precision the forward pass computes, and the loss scale that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FULL: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Precision:
    """A choice of autocast. Weights, gradients and the optimizer stay in the model's own dtype.

    name         "fp32", "bf16" or "fp16"
    device_type  "cpu", "cuda"
    """

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.name == "fp32":
            return _FULL
        return torch.autocast(self.device_type, dtype=_DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scale that keeps small gradients from vanishing in fp16; None where none is
        needed.
        """
        return torch.amp.GradScaler(self.device_type) if self.name == "fp16" else None


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision a name stands for on this device; "auto" is bf16 where it is native."""
    if name == "auto":
        name = "bf16" if computes_in_bf16(device) else "fp32"
    return Precision(name, device.type)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16, so that it is faster, not only smaller."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
