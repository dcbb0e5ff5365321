"""Lets torch's optimizers work without importing `torch._dynamo`, which takes a second.

Four methods of every optimizer import it at their first call, only to have `torch.compile` skip
them. Where nothing else has imported it there is nothing to skip them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
# Where torch keeps what it has made of a method (torch/_compile.py, `_disable_dynamo`).
_MADE = "__dynamo_disable"


def defer_dynamo() -> None:
    """Have optimizers leave `torch._dynamo` alone until it is imported for its own sake."""
    for name in _METHODS:
        function = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if function is not None and not hasattr(function, _MADE):
            setattr(function, _MADE, _until_imported(function))


def _until_imported(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        if disable is None:
            return function(*args, **kwargs)
        made = disable(function, wrapping=False)
        setattr(function, _MADE, made)
        return made(*args, **kwargs)

    return call
