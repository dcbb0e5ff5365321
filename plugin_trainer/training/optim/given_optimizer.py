"""The settings that an optimizer made elsewhere stands for."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import torch
from torch import nn

from plugin_trainer.errors import PtrainError


def optimizer_settings(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    """[optimizer] for an optimizer of torch.optim or of another package, or for its class.

    Weight decay then counts for all parameters, as it does in the object.

    Raises PtrainError for one that settings cannot describe.
    """
    if isinstance(optimizer, type):
        return {"name": _name_of(optimizer)}
    if len(optimizer.param_groups) > 1 or optimizer.state:
        raise PtrainError(
            "optimizer: an object with several parameter groups, or one that has made steps, "
            "cannot be resumed",
            hint='describe it: optimizer={"name": "SGD", "groups": {"encoder.*": {...}}}',
        )
    (group,) = optimizer.param_groups
    trainable = {p for p in model.parameters() if p.requires_grad}
    if set(group["params"]) != trainable:
        raise PtrainError(
            "optimizer: the object holds other parameters than the model trains",
            hint="pass it all parameters that require gradients, and freeze the others",
        )
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(optimizer)).parameters.items()
    }
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in group.items()
        if name in defaults and name not in ("params", "lr", "weight_decay")
        if value != defaults[name]
    }
    return {
        "name": _name_of(type(optimizer)),
        "learning_rate": float(group["lr"]),
        "weight_decay": float(group.get("weight_decay", 0.0)),
        "no_decay": "none",
        **({"settings": options} if options else {}),
    }


def _name_of(cls: type) -> str:
    if getattr(torch.optim, cls.__name__, None) is cls:
        return cls.__name__
    return f"{cls.__module__}:{cls.__qualname__}"


def refuse_scheduler(schedule: Any) -> NoReturn:
    """Raise PtrainError for a scheduler made elsewhere: it moves another optimizer's rates."""
    name = schedule.__name__ if isinstance(schedule, type) else type(schedule).__name__
    raise PtrainError(
        f"schedule: a {name} object moves the rates of another optimizer than the run's",
        hint=f'describe it: schedule="{name}", schedule_settings={{...}} with its arguments',
    )
