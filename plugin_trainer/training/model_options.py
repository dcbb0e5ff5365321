"""What is done to a model's forward pass on request: compile it, recompute its activations."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings import CompileSettings


def compiled(model: nn.Module, settings: CompileSettings | None) -> Callable[..., Any] | None:
    """The model's forward pass compiled, sharing its weights; None where it is not asked for.

    Compiling happens at the first call. The model itself stays as it is, so that its state keeps
    its names. Raises PtrainError for a compiler that torch does not know.
    """
    if settings is None:
        return None
    known = torch.compiler.list_backends(exclude_tags=())
    if settings.backend not in known:
        raise PtrainError(
            f"compile.backend: torch has no compiler '{settings.backend}'",
            hint=f"there are: {', '.join(sorted(known))}",
        )
    options: dict[str, Any] = {"backend": settings.backend, "fullgraph": settings.fullgraph}
    if settings.backend == "inductor":
        options["mode"] = settings.mode
    result: Callable[..., Any] = torch.compile(model, dynamic=settings.dynamic, **options)
    return result


def checkpoint_activations(model: nn.Module, which: bool | tuple[str, ...]) -> list[str]:
    """Let modules forget their activations while training and compute them again when the gradients
    are.

    which  True for every block, that is every entry of a ModuleList that is not inside another; or
           patterns of module names

    Returns the names of the modules. Random draws are repeated, so that dropout is the same. Raises
    PtrainError for a pattern that matches nothing, and for True on a model without blocks.
    """
    if which is False:
        return []
    modules = dict(model.named_modules())
    names = _blocks(modules) if which is True else _matching(modules, which)
    for name in names:
        module = modules[name]
        module.forward = partial(_recomputed, module, module.forward)
    return names


def _recomputed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _blocks(modules: dict[str, nn.Module]) -> list[str]:
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    blocks = [f"{name}.{index}" for name in outermost for index in range(len(modules[name]))]
    if not blocks:
        raise PtrainError(
            "activation_checkpointing: the model has no ModuleList, so its blocks are not known",
            hint=["name its modules by patterns:", 'activation_checkpointing = ["layers.*"]'],
        )
    return blocks


def _matching(modules: dict[str, nn.Module], patterns: tuple[str, ...]) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in modules if name and fnmatchcase(name, pattern)]
        if not found:
            raise PtrainError(
                f"activation_checkpointing: the pattern '{pattern}' matches no module",
                hint=f"the model's first modules are: {', '.join(list(modules)[1:7])}",
            )
        names.update(dict.fromkeys(found))
    # A module inside one that is recomputed anyway would be computed a third time.
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
