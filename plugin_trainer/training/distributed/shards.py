"""Every process holds a part of the weights, the optimizer and the average: FSDP2, as the engine
drives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plugin_trainer.training.distributed.sharding import LocalShards, explained
from plugin_trainer.training.distributed.together import Totals, Weighted
from plugin_trainer.training.distributed.words import SIZE, Heard, having_failed, told, total
from plugin_trainer.training.distributed.world import World


class Shards:
    """Gradients are summed and split while the backward pass still runs.

    Then one small exchange makes the gradient's norm, which is over the parts of all, and takes the
    words along.

    totals  whether steps ask for totals, which are exchanges of their own: then there is no going
            along with the others, who may be in one of them
    """

    name = "fsdp2"

    def __init__(
        self,
        model: nn.Module,
        shards: LocalShards,
        world: World,
        *,
        device: torch.device,
        totals: bool,
        wants_stop: Callable[[], bool],
    ) -> None:
        self._model: Any = model
        self._shards = shards
        self._world = world
        self._device = device
        self._wants_stop = wants_stop
        self._heard = Heard(device)
        self._words = torch.zeros(SIZE, device=device)
        self._last: Weighted | None = None
        self._passes = 0
        self._torn = False
        self._totals = totals

    @property
    def stop_wanted(self) -> bool:
        """Whether, as of the step just finished, any process wants to stop."""
        return self._heard.stop_wanted

    def backward(self, forward: Weighted, *, last: bool) -> None:
        """Add this process's gradients; exchange them all after the last micro-batch."""
        self._torn = True
        self._passes += 1
        self._differentiate(forward, last=last)
        self._torn, self._last = False, forward

    def finish(
        self,
        parameters: Sequence[nn.Parameter],
        measure: Callable[[], Tensor],
        *,
        unit: int | float | Tensor = 1,
    ) -> tuple[Tensor, Totals]:
        """The mean gradient, of it the part held here, and its norm over the parts of all."""
        self._shards.take_gradients()
        words, square = self._exchange(self._words, measure().double() ** 2)
        self._words = torch.zeros(SIZE, device=self._device)
        self._passes = 0
        self._heard.listen(words)
        count, loss = words[0].round(), words[1]
        divisor = count / self._world.size / unit  # FSDP2 has taken the mean
        with torch.no_grad():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                torch._foreach_div_(gradients, divisor)
        return square.sqrt() / divisor, Totals(loss / count, count)

    def measured_after(self, hook: Callable[[], None], measure: Callable[[], Tensor]) -> Tensor:
        """Each process measures its part, so that one that fails in there cannot go along."""
        self._torn = True
        hook()
        nothing = torch.zeros(SIZE, device=self._device)
        _, square = self._exchange(nothing, measure().double() ** 2)
        self._torn = False
        return square.sqrt()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Each pass gathers weights from all: who fails in there cannot go along elsewhere."""
        self._torn = True
        yield
        self._torn = False

    def total(self, count: int | Tensor) -> Tensor:
        """The items of all processes."""
        return total(count, self._device)

    def go_along(self) -> threading.Thread | None:
        """Put the last batch through once more, for nothing, to say that this process has failed.

        Every pass gathers weights from all: within one there is no going along, nor in an
        evaluation or in the middle of several micro-batches, whose number only the others know.
        """
        forward = self._last
        if self._torn or self._passes or self._totals or forward is None:
            return None
        looks_in = self._heard.looks_in

        def exchange() -> None:
            # The others may be gone by now; and they go on until they look.
            with suppress(Exception), torch.enable_grad():
                for _ in range(looks_in):
                    self._differentiate(forward, last=True, share=0.0)
                    none = torch.zeros((), dtype=torch.float64)
                    self._exchange(having_failed(self._device), none)

        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        return thread

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    # ----------------------------------------------------------------------------- its parts

    def _differentiate(self, forward: Weighted, *, last: bool, share: float = 1.0) -> None:
        self._model.set_requires_gradient_sync(last)
        self._model.set_is_last_backward(last)
        try:
            outcome, loss = forward()
            self._words += told(outcome, stop=self._wants_stop())
            (loss * share).backward()
        except Exception as error:
            if (meaning := explained(error)) is not None:
                raise meaning from error
            raise

    def _exchange(self, words: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over all processes."""
        given = torch.cat((words.double(), square.to(self._device).reshape(1)))
        dist.all_reduce(given)
        return given[:SIZE], given[SIZE]
