"""What the engine needs of a model that was made elsewhere: its own names, and all its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from plugin_trainer.data.batches import move_batch
from plugin_trainer.data.share import batch_of
from plugin_trainer.data.stream import TrainStream
from plugin_trainer.training.evaluation import evaluating
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.seeding import own_rng


def unwrapped(model: nn.Module) -> tuple[nn.Module, Callable[..., Any] | None]:
    """The model itself, whose weights go by its own names, and what `torch.compile` made of it.

    The engine spreads a model over processes itself, so that DataParallel and DDP are left out.
    """
    compiled: Callable[..., Any] | None = None
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model, compiled = model.module, None
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            compiled = model if compiled is None else compiled
            model = inner
        else:
            return model, compiled


def give_buffers_memory(model: nn.Module) -> None:
    """Give each expanded buffer all of its elements: one that repeats a few cannot be loaded."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            repeats = (
                step == 0 and size > 1
                for step, size in zip(buffer.stride(), buffer.shape, strict=True)
            )
            if buffer.layout is torch.strided and any(repeats):
                module._buffers[name] = buffer.contiguous()


def initialize_lazy(forward: Forward, model: nn.Module, stream: TrainStream, *, seed: int) -> None:
    """Give the lazy modules of a model their shapes, by its first batch of training data."""
    tensors = [*model.parameters(), *model.buffers()]
    if not any(isinstance(t, (UninitializedParameter, UninitializedBuffer)) for t in tensors):
        return
    device = next((p.device for p in tensors), torch.device("cpu"))
    with own_rng(seed, "lazy modules"), evaluating(*forward.modules):
        window = next(stream.windows(epoch=0, batch=0))
        batch = batch_of(window.micro_batches[0])
        forward(move_batch(batch, device))
    stream.close()
