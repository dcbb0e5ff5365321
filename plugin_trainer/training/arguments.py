"""What `fit` and `load_run` are given as objects, checked before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.names import closest

_OF_COMMAND_LINE = ("model", "data", "model_settings", "data_settings")


def check_fit(
    model: Any, data: Mapping[str, Any], metrics: Any, out: Any, resume: Any, settings: Any
) -> None:
    """Raise PtrainError for arguments of `fit` that are of another kind.

    data  what was given as train, validation and test
    """
    for key in _OF_COMMAND_LINE:
        if key in settings:
            raise PtrainError(
                f"{key}: fit is given the model and the data themselves",
                hint="leave it out; a run file has it, for ptrain run",
            )
    check_model(model)
    for name, given in data.items():
        if isinstance(given, tuple) and given and all(isinstance(one, Tensor) for one in given):
            raise PtrainError(
                f"{name}: a tuple of tensors is no data set",
                hint="make one of them: torch.utils.data.TensorDataset(inputs, labels)",
            )
    check_metrics_by_name(metrics)
    if out is not None and not isinstance(out, (str, PathLike)):
        raise PtrainError(f"out: {out!r} is no path", hint='give a folder: out="runs/first"')
    check_choice("resume", resume, ("never", "auto"))


def check_model(model: Any) -> None:
    """Raise PtrainError for a model that is no module."""
    if isinstance(model, type):
        name = model.__name__
        raise PtrainError(f"model: {name} is a class", hint=f"make one of it: {name}(...)")
    if not isinstance(model, nn.Module):
        raise PtrainError(
            f"model: a {type(model).__name__} is no module", hint="give a torch.nn.Module"
        )


def check_metrics_by_name(metrics: Any) -> None:
    """Raise PtrainError for metrics without names."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise PtrainError(
            f"metrics: a {type(metrics).__name__} has no names for metrics",
            hint='name each: metrics={"accuracy": ...}',
        )


def check_choice(argument: str, given: Any, known: Sequence[str]) -> None:
    """Raise PtrainError for what is none of the words that an argument may be."""
    if given not in known:
        near = closest(given, known) if isinstance(given, str) else None
        hint = f'did you mean "{near}"?' if near else f"write {' or '.join(map(repr, known))}"
        raise PtrainError(f"{argument}: {given!r} is not known", hint=hint.replace("'", '"'))
