"""The device that is measured, and how to wait for it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def synchronizer(device: str) -> Callable[[], object]:
    """Waits until everything that was launched is done; on a CPU that is always so."""
    return torch.cuda.synchronize if device != "cpu" else lambda: None
