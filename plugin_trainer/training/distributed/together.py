"""What it means that several processes make one step.

Each process has its own rows of every batch. Its loss counts by its items, so that the sum of all
processes' gradients, divided by the items of all, is the gradient of the whole batch. How many
those are, what the loss of the whole batch is, and whether anyone wants to stop, travels with the
gradients: a step has no other collective.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from plugin_trainer.outcome import StepOutcome

Weighted = Callable[[], tuple[StepOutcome, Tensor]]
"""Puts one micro-batch through the model: its outcome, and its loss as a sum over its items, which
is what is differentiated.
"""


@dataclass(frozen=True)
class Totals:
    """What all processes' micro-batches of one step come to. 0-dim tensors, not read.

    loss   the mean over all items
    count  the items
    """

    loss: Tensor
    count: Tensor


class Together(Protocol):
    """How this process and the others make one step."""

    name: str
    """What run.json calls it."""

    def backward(self, forward: Weighted, *, last: bool) -> None:
        """Add the gradients of one micro-batch to those of this step.

        last  whether it is the last of the step, after which gradients are exchanged
        """
        ...

    def finish(
        self,
        parameters: Sequence[nn.Parameter],
        measure: Callable[[], Tensor],
        *,
        unit: int | float | Tensor = 1,
    ) -> tuple[Tensor, Totals]:
        """Divide the sums of gradients by the items of all; their norm over all processes.

        measure  the norm of the gradients that this process holds
        unit     how many items count as one in these sums

        Raises PeerFailed, before anything is applied, if another process has failed.
        """
        ...

    def measured_after(self, hook: Callable[[], None], measure: Callable[[], Tensor]) -> Tensor:
        """The norm of the gradients over all processes, once a hook has had them."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Around passes of the model that are no step."""
        ...

    def total(self, count: int | Tensor) -> Tensor:
        """The items of all processes in one micro-batch: a collective of its own."""
        ...

    def go_along(self) -> threading.Thread | None:
        """Tell the others, should they wait for this process's gradients, that it has failed.

        In a thread, for they may be waiting elsewhere; then they go along too, and it ends. None
        if this process cannot: then they will find it gone.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        ...

    @property
    def stop_wanted(self) -> bool:
        """Whether, as of the step just finished, any process wants to stop."""
        ...
