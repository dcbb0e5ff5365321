"""Buffers, such as running statistics, which each process moves by its own rows.

The first process's are the run's: they are what is evaluated and saved. The others take them over
at each evaluation, and keep their own in between, which a checkpoint holds beside the first's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plugin_trainer.data.digest import bytes_of
from plugin_trainer.training.distributed.world import World

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


def same_weights(model: nn.Module, world: World) -> None:
    """Give every process the first one's model, parameters and buffers. All must call it."""
    if world.size == 1:
        return
    world.gather(None)  # an error of one is told here, not waited for
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            _take_from_first(tensor.data)


def same_buffers(run: Run) -> None:
    """Give every process the first one's buffers and their averages. All must call it."""
    if run.together is None or not (buffers := dict(_kept(run.model))):
        return
    run.world.gather(None)  # an error of one is told here, not waited for
    with torch.no_grad():
        for name, buffer in buffers.items():
            _take_from_first(buffer)
            if run.ema is not None and name in run.ema.shadow:
                _take_from_first(run.ema.shadow[name])


def own_buffers(run: Run) -> dict[str, Tensor]:
    """Of this process's buffers, those that differ from the first one's. All must call it."""
    buffers = dict(_kept(run.model))
    if run.ema is not None:
        averages = {name: run.ema.shadow[name] for name in buffers if name in run.ema.shadow}
        buffers |= {f"ema/{name}": average for name, average in averages.items()}
    digests = {name: _digest(buffer) for name, buffer in buffers.items()}
    first = run.world.from_first(digests)
    return {
        name: buffer.detach().cpu()
        for name, buffer in buffers.items()
        if first.get(name) != digests[name]
    }


def restore_buffers(run: Run, state: dict[str, Tensor]) -> None:
    """Put this process's own buffers back, over the first one's."""
    buffers = dict(_kept(run.model))
    with torch.no_grad():
        for name, value in state.items():
            if name.startswith("ema/") and run.ema is not None:
                run.ema.shadow[name.removeprefix("ema/")].copy_(value)
            elif name in buffers:
                buffers[name].copy_(value)


def _take_from_first(tensor: Tensor) -> None:
    """Fill a tensor of any type and form with what the first process has in it."""
    repeats = zip(tensor.stride(), tensor.shape, strict=True)
    if any(step == 0 and size > 1 for step, size in repeats):
        # One element stands in several places: what lies beneath travels.
        beneath = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        dist.broadcast(beneath.set_(tensor.untyped_storage()), src=0)
        return
    travelling = tensor.detach().contiguous().flatten().view(torch.uint8)
    dist.broadcast(travelling, src=0)
    if travelling.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
        tensor.copy_(travelling.view(tensor.dtype).view(tensor.shape))


def _kept(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of the model's saved state."""
    kept = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer


def _digest(buffer: Tensor) -> str:
    return hashlib.blake2b(bytes_of(buffer), digest_size=16).hexdigest()
