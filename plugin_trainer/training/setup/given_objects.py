"""A model and a loss given as objects, told apart: no setting says what they are made of."""

from __future__ import annotations

import hashlib
import inspect
import re
from functools import partial
from typing import Any

from torch import nn

from plugin_trainer.data.digest import bytes_of

_DIGITS = 12
_LONGEST = 50_000
_VARYING = re.compile(r" at 0x[0-9a-f]+|\bFSDP(?=\w+\()")
"""What differs from process to process: addresses, and that a model is split over several."""


def model_repr(model: nn.Module) -> str:
    """The model's modules and their arguments, or a hash of them where they are very many."""
    text = _VARYING.sub("", repr(model))
    return text if len(text) <= _LONGEST else _hash(text.encode())


def describe_loss(loss: Any) -> str:
    """The loss's name and arguments: CrossEntropyLoss(ignore_index=-100, label_smoothing=0.1)."""
    if isinstance(loss, partial):
        given = [*map(str, loss.args), *(f"{key}={value}" for key, value in loss.keywords.items())]
        return f"{describe_loss(loss.func)}({', '.join(given)})"
    if inspect.isroutine(loss):
        return f"{loss.__module__}.{loss.__qualname__}"
    plain = {
        name: value
        for name, value in getattr(loss, "__dict__", {}).items()
        if isinstance(value, (bool, int, float, str)) and name[0] != "_" and name != "training"
    }
    if isinstance(loss, nn.Module):
        plain |= {name: _hash(bytes_of(buffer)) for name, buffer in loss.named_buffers()}
    return f"{type(loss).__qualname__}({', '.join(f'{key}={plain[key]}' for key in sorted(plain))})"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
