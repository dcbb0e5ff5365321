"""In which precision the forward pass computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """A choice of autocast. Weights, gradients and the optimizer stay in the model's own dtype."""

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=torch.bfloat16)
