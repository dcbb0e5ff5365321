"""A loop by hand under Accelerate; its average is the hand-written one, since the loop is."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from . import tiny
from .hand import Average, log
from .tiny import Task


def with_all(task: Task) -> nn.Module:
    """Everything that it wraps, as its guide has it; it has no callbacks."""
    accelerator = Accelerator(cpu=True)
    model = tiny.make_model()
    optimizer = tiny.make_optimizer(model)
    model, optimizer, loader, schedule = accelerator.prepare(
        model,
        optimizer,
        tiny.make_loader(task),
        tiny.make_schedule(optimizer, steps=task.steps),
    )
    average = Average(model)
    total = torch.zeros(())
    for step, (features, labels) in enumerate(loader, start=1):
        with accelerator.accumulate(model):
            loss = functional.cross_entropy(model(features), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), tiny.MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.update()
        total += loss.detach()
        if step % tiny.LOG_EVERY == 0:
            log(step, total)
        if step == task.steps:
            break
    return accelerator.unwrap_model(model)
