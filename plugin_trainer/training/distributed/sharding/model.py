"""Split a model's weights over processes: torch's FSDP2, block by block.

Each process keeps some rows of every parameter. A block's parameters are gathered before its
forward and its backward pass and let go of after them; its gradients are summed and split in one
exchange, as a mean over the processes. Buffers stay whole in each process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from plugin_trainer.errors import PtrainError
from plugin_trainer.training.model.model_options import blocks

_DDP = 'every process can hold the whole model: parallel.strategy = "ddp"'


def shard(model: nn.Module, mesh: Any) -> None:
    """Split every parameter by its first dimension over the processes of a mesh, in place.

    mesh  a one-dimensional torch.distributed.device_mesh.DeviceMesh; the model is on its device

    What is gathered at once is a block, an entry of a ModuleList; then all that is in none. A block
    that shares a parameter with anything outside of it belongs to the rest, so that tied weights
    stay tied. What is to be frozen should be so before. Call it once, before the optimizer and the
    average are made.

    Raises PtrainError for a model that cannot be split so, naming the parameter.
    """
    from torch.distributed.fsdp import fully_shard

    for name, parameter in model.named_parameters():
        _check_parameter(model, name, parameter)
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            _refuse(model, f"the gradient of '{name}' is sparse", "leave out its sparse=True")
    alone = _gathered_alone(model)
    within = {parameter for block in alone for parameter in block.parameters()}
    for block in alone:
        _check_one_dtype(model, block.parameters())
    _check_one_dtype(model, (p for p in model.parameters() if p not in within))
    for block in alone:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def forget_gathered(model: nn.Module) -> None:
    """Let go of gathered parameters: who has changed the shards wants the next pass to see it.

    FSDP2 keeps those that are in no block from a forward pass without a backward one, as in an
    evaluation, until the next backward pass. A model that is not sharded has none.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that a model was made of: one that is split is of a class that derives from it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, fsdp.FSDPModule):
        return type(model)
    return next(cls for cls in type(model).__bases__ if cls is not fsdp.FSDPModule)


def explained(error: Exception) -> PtrainError | None:
    """What an error of a sharded model's forward pass means, where it can be told."""
    if "mixed torch.Tensor and DTensor" not in str(error):
        return None
    return PtrainError(
        'parallel.strategy: under "fsdp2" a block\'s weights are there only while its forward() '
        "runs, and the model uses some of them elsewhere",
        hint=["let each entry of a ModuleList be called, and use its own weights only", _DDP],
    )


def _check_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, UninitializedParameter):
        _refuse(
            model,
            f"the parameter '{name}' has no shape before the first batch",
            "give its module the number of its inputs",
        )
    if parameter.dim() == 0:
        _refuse(
            model,
            f"the parameter '{name}' is a single number, without a dimension to split",
            "let it have one: a shape of (1,) in place of ()",
        )
    if not parameter.is_contiguous():
        _refuse(
            model,
            f"the parameter '{name}' is not contiguous",
            "make it so: parameter.data = parameter.data.contiguous()",
        )


def _check_one_dtype(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Gradients that travel together are of one dtype; frozen weights have none."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    first: dict[torch.dtype, str] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            first.setdefault(parameter.dtype, names[parameter])
    if len(first) > 1:
        examples = ", ".join(
            f"'{name}' is {str(dtype).removeprefix('torch.')}" for dtype, name in first.items()
        )
        _refuse(
            model,
            f"parameters that train together have several dtypes: {examples}",
            "keep all weights in float32, and let precision say what is computed in",
        )


def _refuse(model: nn.Module, why: str, hint: str) -> NoReturn:
    raise PtrainError(
        f'parallel.strategy: "fsdp2" cannot split the model {type(model).__name__}: {why}',
        hint=[hint, _DDP],
    )


def _gathered_alone(model: nn.Module) -> list[nn.Module]:
    """The blocks that hold parameters, and all that have them."""
    used = _uses(model)
    found = []
    for name in blocks(model):
        block = model.get_submodule(name)
        its = _uses(block)
        if its and all(count == used[parameter] for parameter, count in its.items()):
            found.append(block)
    return found


def _uses(module: nn.Module) -> dict[nn.Parameter, int]:
    """In how many places each parameter is; a module that is in several counts once."""
    counts: dict[nn.Parameter, int] = {}
    for inner in module.modules():
        for parameter in inner._parameters.values():
            if parameter is not None:
                counts[parameter] = counts.get(parameter, 0) + 1
    return counts
