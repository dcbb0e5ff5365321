"""Every process holds the whole model: DistributedDataParallel, as the engine drives it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from plugin_trainer.errors import TrainingFailed
from plugin_trainer.training.distributed.together import Totals, Weighted
from plugin_trainer.training.distributed.words import (
    SIZE,
    Heard,
    has_no_item,
    having_failed,
    told,
    total,
)
from plugin_trainer.training.distributed.world import World


class _Driven(nn.Module):
    """What DDP wraps: whatever computes the loss, and a parameter whose gradient carries what the
    processes tell each other.

    The model is called wherever the engine or a plugin calls it: all of that is the forward pass.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        # The gradient of (told * words).sum() with respect to `told` is `words`.
        self.told = nn.Parameter(torch.zeros(SIZE, device=device))
        # Without one that is, DDP warns that a search for what is left out finds nothing.
        self.left_out = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, losses: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        loss, words = losses()
        return loss + (self.told * words).sum()


class Replicas:
    """Gradients are summed up while the backward pass still runs.

    unused  whether a step may leave parameters without a gradient; None before the first step,
            which finds out. Where none may, the search for them is left out.
    totals  whether steps ask for totals, which are exchanges of their own: then there is no going
            along with the others, who may be in one of them

    In which order gradients are added up depends on how DDP packs them, which it decides anew after
    its first step. A resumed run must add in the same order: so that first step is made with zeros,
    beforehand.
    """

    name = "ddp"

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        device: torch.device,
        unused: bool | None,
        totals: bool,
        wants_stop: Callable[[], bool],
    ) -> None:
        self._driven = _Driven(model, device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._names = {p: name for name, p in model.named_parameters()}
        self._world = world
        self._heard = Heard(device)
        self._wants_stop = wants_stop
        self._backward_of: DistributedDataParallel | None = None
        self._used: set[nn.Parameter] = set()
        self._watching: list[RemovableHandle] = []
        self._torn = False
        self._totals = totals
        self.unused = unused

    @property
    def stop_wanted(self) -> bool:
        """Whether, as of the step just finished, any process wants to stop."""
        return self._heard.stop_wanted

    def backward(self, forward: Weighted, *, last: bool) -> None:
        """Add this process's gradients; exchange them all after the last micro-batch."""
        ddp = self._ddp()
        ddp.require_backward_grad_sync = last

        def with_words() -> tuple[Tensor, Tensor]:
            outcome, loss = forward()
            if self.unused is False and has_no_item(outcome):
                loss, _ = self._nothing(failed=False)  # a mean over none may have no gradient
            return loss, told(outcome, stop=self._wants_stop())

        self._used.clear()
        loss = ddp(with_words)
        self._torn = True
        loss.backward()
        self._torn = False

    def finish(
        self,
        parameters: Sequence[nn.Parameter],
        measure: Callable[[], Tensor],
        *,
        unit: int | float | Tensor = 1,
    ) -> tuple[Tensor, Totals]:
        """The mean gradient and its norm, the same in every process."""
        words = self._driven.told.grad
        assert words is not None
        self._driven.told.grad = None
        words = words * self._world.size  # DDP has taken the mean
        self._heard.listen(words)
        if self.unused is None:
            self._find_unused()
        elif not self.unused:
            self._refuse_unused()
        count, loss = words[0].round(), words[1]
        with torch.no_grad():
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_div_(gradients, count / self._world.size / unit)
        return measure(), Totals(loss / count, count)

    def measured_after(self, hook: Callable[[], None], measure: Callable[[], Tensor]) -> Tensor:
        """Each process measures all of them."""
        hook()
        return measure()

    def evaluating(self) -> AbstractContextManager[None]:
        """Nothing is exchanged there."""
        return nullcontext()

    def total(self, count: int | Tensor) -> Tensor:
        """The items of all processes."""
        return total(count, self._driven.told.device)

    def go_along(self) -> threading.Thread | None:
        """Take part in one more exchange of gradients, with zeros, to say in it that this process
        has failed. Within a backward pass there is no going along.
        """
        if self._torn or self._totals:
            return None
        looks_in = self._heard.looks_in

        def exchange() -> None:
            # The others may be gone by now; and they go on until they look.
            with suppress(Exception), torch.enable_grad():
                for _ in range(looks_in):
                    ddp = self._ddp()
                    ddp.require_backward_grad_sync = True
                    ddp(lambda: self._nothing(failed=True)).backward()

        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        return thread

    def state_dict(self) -> dict[str, Any]:
        """Whether the first step has left parameters out."""
        return {"unused": self.unused}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, unless the settings say it."""
        if self.unused is None:
            self.unused = state.get("unused")

    # ----------------------------------------------------------------------------- its parts

    def _ddp(self) -> DistributedDataParallel:
        if self._backward_of is None:
            searching = self.unused is not False
            self._driven.left_out.requires_grad_(searching)
            self._backward_of = _wrap(self._driven, searching=searching)
            if self.unused is None:
                self._watch()
            elif not searching:
                self._backward_of(lambda: self._nothing(failed=False)).backward()
                for parameter in (*self._parameters, self._driven.told):
                    parameter.grad = None
        return self._backward_of

    def _nothing(self, *, failed: bool) -> tuple[Tensor, Tensor]:
        """A loss with a gradient of zero for every parameter."""
        sums = [p.flatten()[:1].sum().float() for p in self._parameters]
        words = having_failed(self._driven.told.device) * failed
        return torch.stack(sums).sum() * 0, words

    def _watch(self) -> None:
        for parameter in self._parameters:
            self._watching.append(
                parameter.register_hook(lambda grad, p=parameter: self._used.add(p))
            )

    def _find_unused(self) -> None:
        """See whether the first step has left parameters out, in any process."""
        for handle in self._watching:
            handle.remove()
        self._watching.clear()
        self.unused = any(self._world.gather(len(self._used) < len(self._parameters)))
        if not self.unused:
            self._backward_of = None  # the next one does not search

    def _refuse_unused(self) -> None:
        # DDP has not exchanged what it packs together with such a parameter.
        left_out = [self._names[p] for p in self._parameters if p.grad is None]
        if left_out:
            self._torn = True  # others may have them, and still wait
            raise TrainingFailed(
                f"the step left {len(left_out)} parameters without a gradient, which the first "
                "step had not",
                hint=[
                    f"such as {', '.join(left_out[:3])}",
                    'say that the model does so: --set parallel.unused_parameters="search" '
                    "--allow parallel",
                ],
            )


def _wrap(module: nn.Module, *, searching: bool) -> DistributedDataParallel:
    options: dict[str, Any] = {
        "find_unused_parameters": searching,
        "init_sync": False,
        "gradient_as_bucket_view": True,  # what is exchanged is not kept twice
    }
    # Newer versions of torch call it otherwise. Buffers are made alike at each evaluation.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(module, **{name: False}, **options)
