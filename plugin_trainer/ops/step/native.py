"""The compiled step: a plan of an optimizer's tensors, and what torch.compile must know of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


class Plan:
    """The tensors of one optimizer on one device, checked once; the compiled ops keep hold of them.

    params       P dense tensors of any dtype that `fused_step_` takes
    exp_avgs, exp_avg_sqs, steps
                 their states; `torch.empty(0)` for each of a parameter that has none yet
    shadows      their averages, `torch.empty(0)` for a parameter without one; or none at all
    groups       for each parameter, its row of the `hyper` that `apply` is given

    The tensors are looked at anew at each call: `param.data = other` is followed where shape,
    strides and dtype stay. Raises RuntimeError, naming the list and the index, where they do not,
    where memory was given back, or where two tensors share it; nothing is written then.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        steps: Sequence[Tensor],
        shadows: Sequence[Tensor],
        groups: Sequence[int],
    ) -> None:
        self._count = len(params)
        self._id: int = torch.ops.ptrain.step_plan(
            params, exp_avgs, exp_avg_sqs, steps, shadows, groups
        )
        weakref.finalize(self, torch.ops.ptrain.step_free_plan, self._id).atexit = False

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """The gradients of the next step, one for each parameter; None: it has none this time."""
        some = [gradient for gradient in gradients if gradient is not None]
        places: list[int] = []
        if len(some) != self._count:
            places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        torch.ops.ptrain.step_set_gradients(self._id, some, places)

    def drop_gradients(self) -> None:
        """Lets go of the gradients, so that their memory can be used."""
        torch.ops.ptrain.step_set_gradients(self._id, [], [])

    def norm(self) -> Tensor:
        """The norm of the gradients: 0-dim, float64."""
        norm: Tensor = torch.ops.ptrain.step_norm(self._id)
        return norm

    def check(self, *, zero_grads: bool) -> None:
        """Raises the RuntimeError that `apply` would raise for a tensor."""
        torch.ops.ptrain.step_check(self._id, zero_grads)

    def apply(
        self, hyper: Tensor, norm: Tensor, *, max_norm: float, average: bool, zero_grads: bool
    ) -> None:
        """The step with these gradients; `average` says whether the shadows move."""
        torch.ops.ptrain.step_apply_(self._id, hyper, norm, max_norm, average, zero_grads)


def register() -> None:
    """Tells torch.compile that the step only writes. Called once, when the library is loaded."""
    torch.library.register_fake("ptrain::fused_step_", _fake_fused_step_)


def _fake_fused_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    shadows: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    norm: Tensor | None,
    max_norm: float,
    zero_grads: bool,
) -> None:
    return None
