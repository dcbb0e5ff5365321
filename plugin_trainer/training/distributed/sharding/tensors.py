"""Tensors of which each process holds some rows: torch's DTensor, as far as the engine needs it.

torch.distributed.tensor takes 0.4 s to import, which a run in one process need not pay: a tensor
can only be sharded where something has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(value: object) -> bool:
    """Whether this process holds only a part of the tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; of a plain tensor, all of it."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        sharded: Any = tensor
        return sharded.to_local()


def sharded_like(local: Tensor, like: Tensor) -> Tensor:
    """This process's rows as a part of a tensor that is split as `like` is and has its shape."""
    from torch.distributed.tensor import DTensor

    model: Any = like
    return DTensor.from_local(
        local,
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )


def empty_like(like: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A tensor split as `like` is, with the memory of this process's rows."""
    return sharded_like(torch.empty_like(local_part(like), dtype=dtype), like)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that every process has, a tensor split as `like` is: nothing travels."""
    from torch.distributed.tensor import distribute_tensor

    model: Any = like
    whole = whole.to(local_part(like).device)
    return distribute_tensor(whole, model.device_mesh, model.placements, src_data_rank=None)


def fitted(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state that the model's `load_state_dict` takes, of whole tensors, whatever of the model is
    sharded.

    What does not fit stays as it is, for `load_state_dict` to name it.
    """
    own = model.state_dict()
    return {
        name: part_of(value, own[name])
        if is_sharded(own.get(name))
        and isinstance(value, Tensor)
        and not is_sharded(value)
        and value.shape == own[name].shape
        else value
        for name, value in state.items()
    }
