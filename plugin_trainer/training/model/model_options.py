"""What is done to a model's forward pass on request: compile it, recompute its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    Returns the names of the modules. Random draws are repeated, so that dropout is the same, and
    buffers change once, so that running statistics are too. What an earlier call did to the model's
    modules is undone. Raises PtrainError for a pattern that matches nothing, and for True on a
    model without blocks.
    """
    _undo(model)
    if which is False:
        return []
    modules = dict(model.named_modules())
    names = _all_blocks(model) if which is True else _matching(modules, which)
    for name in names:
        module = modules[name]
        module.forward = partial(_recomputed, module, module.forward)
    _fill_no_cache(model)
    return names


def _undo(model: nn.Module) -> None:
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is _recomputed:
            del module.forward
            if module.forward != forward.args[1]:  # not the one of its class
                module.forward = forward.args[1]


def _fill_no_cache(model: nn.Module) -> None:
    """Let models of transformers keep no keys and values of the tokens before: a block would find
    those of its first computation in its second.
    """
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False


def _recomputed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(_counted_once, module, forward, *args, use_reentrant=False, **kwargs)


def _counted_once(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Within a backward pass it is the second time. A compiled block changes no buffer in what it
    # computes again; of one that cannot be compiled the second time comes here uncompiled.
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return forward(*args, **kwargs)
    with _on_copies_of_buffers(module):
        return forward(*args, **kwargs)


@contextmanager
def _on_copies_of_buffers(module: nn.Module) -> Iterator[None]:
    """What a second forward pass does to buffers is done to copies: the first has done it to the
    buffers themselves.
    """
    buffers = [
        (owner._buffers, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}
    try:
        for owned, name, buffer in buffers:
            owned[name] = copies[id(buffer)]
        yield
    finally:
        for owned, name, buffer in buffers:
            owned[name] = buffer


def _all_blocks(model: nn.Module) -> list[str]:
    names = blocks(model)
    if not names:
        raise PtrainError(
            "activation_checkpointing: the model has no ModuleList, so its blocks are not known",
            hint=["name its modules by patterns:", 'activation_checkpointing = ["layers.*"]'],
        )
    return names


def blocks(model: nn.Module) -> list[str]:
    """The names of a model's blocks, each module once: the entries of every ModuleList that is not
    inside another's entry. Of an entry that is only a list itself, its own entries.
    """
    names: dict[nn.Module, str] = {}
    for name, module in _entries(model, "", inside=False):
        names.setdefault(module, name)
    return list(names.values())


def _entries(module: nn.Module, path: str, *, inside: bool) -> Iterator[tuple[str, nn.Module]]:
    """inside  whether the module's children are entries of a list"""
    for name, child in module.named_children():
        place = f"{path}{name}"
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict)) and (
            type(child).forward is nn.Module.forward
        )
        if inside and not is_list:
            yield place, child
        else:
            deeper = inside or isinstance(child, nn.ModuleList)
            yield from _entries(child, f"{place}.", inside=deeper)


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
