"""The moving average of the weights: a second weight set beside the raw one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plugin_trainer.ops import ema_decay
from plugin_trainer.ops.ema import PreparedEma, shadow_dtype
from plugin_trainer.training.distributed.sharding import LocalShards, local_part


class Ema:
    """An exponential moving average of a model's trainable parameters and its buffers.

    The average is kept in float32 (float64 for float64 weights) on the model's device. Frozen
    parameters are not kept twice. A buffer that a module assigns anew is followed by its name. Of
    a sharded model each process averages the rows that it holds.

    buffers  which floating buffers are averaged: the running "statistics" of normalisations, "all"
             or "none". The others are copied at each update, as integer buffers always are: the
             average of a mask with infinities is NaN, and that of a count or a bound means nothing
    shards   those of a sharded model
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float,
        warmup: bool,
        buffers: Literal["statistics", "all", "none"] = "statistics",
        shards: LocalShards | None = None,
    ) -> None:
        self._decay = decay
        self._warmup = warmup
        self._shards = shards
        self.updates = 0
        averaged = {
            name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad
        }
        # What is not part of the model's saved state (a cached mask, say) is not part of the
        # average.
        persistent = model.state_dict().keys()
        averaged.update(
            (name, tensor) for name, tensor in model.named_buffers() if name in persistent
        )
        self._weights: list[Tensor] = [
            shards.local(tensor)
            if shards is not None and isinstance(tensor, nn.Parameter)
            else tensor
            for tensor in averaged.values()
        ]
        # Where the buffers are looked up, by their place among the weights.
        self._buffers = {
            place: _owner(model, name)
            for place, (name, tensor) in enumerate(averaged.items())
            if not isinstance(tensor, nn.Parameter)
        }
        self._copied = {
            place
            for place, name in enumerate(averaged)
            if place in self._buffers and not _is_averaged(model, name, buffers)
        }
        self.shadow = {
            name: self._shadow_of(place, weight)
            for place, (name, weight) in enumerate(zip(averaged, self._weights, strict=True))
        }
        self._lent: set[int] = set()  # places among the weights
        self._prepare()

    def _prepare(self) -> None:
        shadows = list(self.shadow.values())
        averaged = [place for place in range(len(shadows)) if place not in self._copied]
        rest = [place for place in averaged if place not in self._lent]
        self._update, self._update_rest = (
            PreparedEma([shadows[i] for i in places], [self._weights[i] for i in places])
            for places in (averaged, rest)
        )

    @torch.no_grad()
    def _copy(self) -> None:
        shadows = list(self.shadow.values())
        for place in self._copied:
            shadows[place].copy_(self._weights[place])

    def update(self) -> None:
        """Move the average towards the weights; once after each optimizer step."""
        self._follow_buffers()
        self._update(self.next_decay)
        self._copy()
        self.updates += 1

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        return ema_decay(self.updates, decay=self._decay, warmup=self._warmup)

    def lend(self, parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The averages of these parameters, for a fused step that moves them itself.

        Such a step calls `update_the_rest` in place of `update`.
        """
        place_of = {weight: place for place, weight in enumerate(self._weights)}
        shadows = list(self.shadow.values())
        lent = {p: place_of[p] for p in parameters if p in place_of}
        self._lent = set(lent.values())
        self._prepare()
        return {parameter: shadows[place] for parameter, place in lent.items()}

    def update_the_rest(self, decay: float) -> None:
        """Move what was not lent, the buffers among it, and count the update."""
        self._follow_buffers()
        self._update_rest(decay)
        self._copy()
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside, and its raw weights again afterwards, whatever
        happens.
        """
        self._follow_buffers()
        held = [(of, name, of[name]) for of, name in self._buffers.values() if name in of]
        with ExitStack() as undo:
            if self._shards is not None:
                undo.callback(self._shards.changed)
            for weight, shadow in zip(self._weights, self.shadow.values(), strict=True):
                if self._shards is not None and isinstance(weight, nn.Parameter):
                    # What gathers the rows reads them where they have always been.
                    undo.callback(weight.data.copy_, weight.detach().clone())
                    weight.data.copy_(shadow)
                else:
                    undo.callback(setattr, weight, "data", weight.data)
                    # A buffer may be changed by a forward pass; the average must not be.
                    weight.data = shadow.to(weight.dtype, copy=not isinstance(weight, nn.Parameter))
            for buffers, name, buffer in held:  # a forward pass may assign them anew
                undo.callback(buffers.__setitem__, name, buffer)
            if self._shards is not None:
                self._shards.changed()
            yield

    @torch.no_grad()
    def begin(self) -> None:
        """Begin with the weights as they are now."""
        self._follow_buffers()
        for shadow, weight in zip(self.shadow.values(), self._weights, strict=True):
            shadow.copy_(weight)
        self.updates = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the names of the model's own state, sharded as its weights are."""
        if self._shards is None:
            return dict(self.shadow)
        return {
            name: self._shards.as_sharded(weight, shadow)
            for (name, shadow), weight in zip(self.shadow.items(), self._weights, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], *, updates: int) -> None:
        """Take the average and its counter back, of a sharded model's weights sharded as they are.

        Raises KeyError if a tensor is missing.
        """
        for name, shadow in self.shadow.items():
            shadow.copy_(local_part(tensors[name]))
        self.updates = updates

    def counters(self) -> dict[str, Any]:
        """What the average needs beside its tensors."""
        return {"updates": self.updates}

    def _shadow_of(self, place: int, tensor: Tensor) -> Tensor:
        dtype = tensor.dtype if place in self._copied else shadow_dtype(tensor.dtype)
        return tensor.detach().to(dtype, copy=True)

    def _follow_buffers(self) -> None:
        """Take up what modules have assigned anew, as in `self.mean = 0.9 * self.mean + ...`."""
        new = [
            (place, tensor)
            for place, (buffers, name) in self._buffers.items()
            if (tensor := buffers.get(name)) is not self._weights[place] and tensor is not None
        ]
        if not new:
            return
        names = list(self.shadow)
        for place, tensor in new:
            self._weights[place], shadow = tensor, self.shadow[names[place]]
            fresh = self._shadow_of(place, tensor)
            if (shadow.shape, shadow.device, shadow.dtype) != (
                fresh.shape,
                fresh.device,
                fresh.dtype,
            ):
                self.shadow[names[place]] = fresh  # there is no average of the two
        self._prepare()


def _owner(model: nn.Module, buffer: str) -> tuple[dict[str, Tensor | None], str]:
    path, _, name = buffer.rpartition(".")
    return model.get_submodule(path)._buffers, name


def _is_averaged(model: nn.Module, buffer: str, buffers: str) -> bool:
    path, _, name = buffer.rpartition(".")
    module = model.get_submodule(path)
    is_normalisation = isinstance(module, nn.modules.batchnorm._NormBase) or (
        "norm" in type(module).__name__.lower()  # those of other libraries
    )
    is_statistic = is_normalisation and name.startswith("running_")
    return buffers == "all" or (buffers == "statistics" and is_statistic)
