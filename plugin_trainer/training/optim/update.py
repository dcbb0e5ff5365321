"""How gradients become new weights: measured, clipped, applied, averaged. Two ways, one choice.

`FusedUpdate` is one pass over memory: the clip's scale, AdamW and the average in one kernel, which
reads the gradient norm where it lies and writes nothing if that is not finite. `TorchUpdate` is the
same in torch's own operations, for every other optimizer and wherever the kernels are not.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from plugin_trainer.ops import FusedAdamW
from plugin_trainer.training.optim.ema import Ema
from plugin_trainer.training.optim.gradients import scale_to_norm, total_norm
from plugin_trainer.training.optim.guard import Guard, Latched
from plugin_trainer.training.optim.one_pass import why_not_in_one_pass


class Update(Protocol):
    """One optimizer step, in two halves, so that a guard can look at the norm between them."""

    name: str
    """What run.json calls it."""

    def measure(self) -> Tensor:
        """The norm of all gradients, before clipping, not read by the host."""
        ...

    def apply(self, grad_norm: Tensor) -> None:
        """Clip, move the weights, then their average. `grad_norm` is what `measure` returned."""
        ...

    def skip(self) -> None:
        """Not apply this step: let go of its gradients."""
        ...


class TorchUpdate:
    """Any optimizer, in torch's own operations."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, max_norm: float, ema: Ema | None
    ) -> None:
        self.name = f"torch ({why_not_in_one_pass(optimizer)})"
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._ema = ema
        self._gradients: list[Tensor] = []

    def measure(self) -> Tensor:
        """The norm of all gradients."""
        groups = self._optimizer.param_groups
        self._gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        with torch.no_grad():
            return total_norm(self._gradients)

    def apply(self, grad_norm: Tensor) -> None:
        """Clip in place, step, average."""
        with torch.no_grad():
            scale_to_norm(self._gradients, grad_norm, max_norm=self._max_norm)
        self._gradients = []
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update()

    def skip(self) -> None:
        """Let go of the gradients."""
        self._gradients = []


class FusedUpdate:
    """AdamW in one pass over memory.

    found  the flag of a `Latched` guard: from the first bad step on, nothing is written
    """

    name = "fused"

    def __init__(
        self, optimizer: FusedAdamW, *, max_norm: float, ema: Ema | None, found: Tensor | None
    ) -> None:
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._ema = ema
        self._found = found
        if ema is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.attach_average(ema.lend(parameters))

    def measure(self) -> Tensor:
        """The norm of all gradients, in float64."""
        return self._optimizer.measure()

    def apply(self, grad_norm: Tensor) -> None:
        """The update, and what of the average is no parameter of the optimizer."""
        if self._found is not None:
            grad_norm = torch.where(self._found != 0, math.nan, grad_norm)
        if self._ema is None:
            self._optimizer.apply(grad_norm, max_norm=self._max_norm)
            return
        decay = self._ema.next_decay
        self._optimizer.apply(grad_norm, max_norm=self._max_norm, decay=decay)
        self._ema.update_the_rest(decay)

    def skip(self) -> None:
        """Let go of the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


def build_update(
    optimizer: torch.optim.Optimizer, *, max_norm: float, ema: Ema | None, guard: Guard
) -> Update:
    """The one pass where the optimizer is made for it."""
    if not isinstance(optimizer, FusedAdamW):
        return TorchUpdate(optimizer, max_norm=max_norm, ema=ema)
    found = guard.found if isinstance(guard, Latched) else None
    return FusedUpdate(optimizer, max_norm=max_norm, ema=ema, found=found)
