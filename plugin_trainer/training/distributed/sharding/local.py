"""The part of a sharded model that a process keeps, as plain tensors for an optimizer to move.

Our kernels, and torch's fused ones, want plain tensors. What an elementwise optimizer does to rows
is the same wherever the other rows are, so each process moves its own and none is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.ops import FusedAdamW
from plugin_trainer.training.distributed.sharding.model import forget_gathered
from plugin_trainer.training.distributed.sharding.tensors import (
    is_sharded,
    local_part,
    sharded_like,
)
from plugin_trainer.training.optim.gradients import total_norm

_ELEMENTWISE = (
    FusedAdamW,
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)


class LocalShards:
    """For each sharded parameter of a model a plain one over the rows that this process holds.

    Both share their memory: to move one is to move the other. A process that has no row of a
    parameter has an empty one, so that all have the same parameters. Make it once, right after the
    model has been split.

    names  the first name of each parameter of the model, by its local one. The model itself has
           gathered ones in their place at times
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        forget_gathered(model)
        self._local_of = {
            parameter: nn.Parameter(local_part(parameter), requires_grad=parameter.requires_grad)
            for parameter in model.parameters()
            if is_sharded(parameter)
        }
        self._whole_of = {local: whole for whole, local in self._local_of.items()}
        self.names = {self.local(parameter): name for name, parameter in model.named_parameters()}

    def local(self, parameter: nn.Parameter) -> nn.Parameter:
        """The plain parameter over its rows here; the parameter itself if it is not sharded."""
        return self._local_of.get(parameter, parameter)

    def take_gradients(self) -> None:
        """Move each sharded parameter's gradient to its local one; the memory stays where it is.

        After the backward pass that has exchanged them, and before anything that looks at the
        optimizer's gradients.
        """
        for whole, local in self._local_of.items():
            local.grad = None if whole.grad is None else local_part(whole.grad)
            whole.grad = None

    def drop_gradients(self) -> None:
        """Let go of all gradients, those that were not taken too."""
        for whole, local in self._local_of.items():
            whole.grad = local.grad = None

    def as_sharded(self, local: nn.Parameter, tensor: Tensor) -> Tensor:
        """What belongs to a local parameter, element by element, as a part of the whole; anything
        else (a step counter, what belongs to a parameter that is not sharded) as it is.
        """
        whole = self._whole_of.get(local)
        if whole is None or tensor.shape != local.shape:
            return tensor
        return sharded_like(tensor, whole)

    def changed(self) -> None:
        """Say that rows were changed otherwise than between a backward and a forward pass."""
        forget_gathered(self._model)


def local_norm_squared(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of the gradients that this process holds: 0-dim, float64.

    Added up over all processes, and then the root of it, it is the norm of the whole gradient.
    """
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return total_norm(gradients).double() ** 2


def check_elementwise(cls: Any) -> None:
    """Refuse an optimizer that looks at more of a weight than one element at a time.

    A class of one's own says that it does not: `elementwise = True`. Raises PtrainError.
    """
    if cls in _ELEMENTWISE or getattr(cls, "elementwise", False) is True:
        return
    name = getattr(cls, "__name__", str(cls))
    raise PtrainError(
        f"optimizer.name: {name} may need whole weights, of which a process holds some rows under "
        'parallel.strategy = "fsdp2"',
        hint=[
            f"these do not: {', '.join(sorted(c.__name__ for c in _ELEMENTWISE[1:]))}",
            "a class of your own that treats each element by itself says: elementwise = True",
            'every process can hold the whole model: parallel.strategy = "ddp"',
        ],
    )
