"""The device that is measured, how to wait for it, and a word on what is being measured on it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch


def synchronizer(device: str) -> Callable[[], object]:
    """Waits until everything that was launched is done; on a CPU that is always so."""
    return torch.cuda.synchronize if device != "cpu" else lambda: None


def announce(what: str) -> None:
    """One line on stderr, for whoever waits."""
    print(f"  {what}", file=sys.stderr, flush=True)
