"""The compiled norm: what torch.compile must know of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def register() -> None:
    """Tells torch.compile the shape of the norm. Called once, when the library has been loaded."""
    torch.library.register_fake("ptrain::grad_norm", _fake_grad_norm)


def _fake_grad_norm(gradients: Sequence[Tensor]) -> Tensor:
    if not gradients:
        return torch.empty((), dtype=torch.float64)
    return gradients[0].new_empty((), dtype=torch.float64)
