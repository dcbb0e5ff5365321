"""Seed every random stream of a process: the training process's own, and a loader's worker's."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if _has_device():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed would note a traceback for devices that never come: 2 ms.
        torch.default_generator.manual_seed(seed)


@cache  # asked before workers are forked, which may not ask CUDA
def _has_device() -> bool:
    return torch.accelerator.is_available()
