"""Loops written by hand, as somebody writes them who knows that reading a loss costs a wait."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional

from . import tiny
from .tiny import Task


def plain(task: Task) -> nn.Module:
    """Forward, backward, optimizer, and a line every 50 steps."""
    model = tiny.make_model()
    optimizer = tiny.make_optimizer(model)
    total = torch.zeros(())
    for step, (features, labels) in enumerate(tiny.make_loader(task), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(features), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if step % tiny.LOG_EVERY == 0:
            log(step, total)
        if step == task.steps:
            break
    return model


def with_clipping_and_schedule(task: Task) -> nn.Module:
    """The same with clipping and a schedule."""
    model = tiny.make_model()
    optimizer = tiny.make_optimizer(model)
    schedule = tiny.make_schedule(optimizer, steps=task.steps)
    total = torch.zeros(())
    for step, (features, labels) in enumerate(tiny.make_loader(task), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(features), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), tiny.MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if step % tiny.LOG_EVERY == 0:
            log(step, total)
        if step == task.steps:
            break
    return model


def with_all(task: Task) -> nn.Module:
    """The same with clipping, a schedule and a moving average."""
    model = tiny.make_model()
    optimizer = tiny.make_optimizer(model)
    schedule = tiny.make_schedule(optimizer, steps=task.steps)
    average = Average(model)
    total = torch.zeros(())
    for step, (features, labels) in enumerate(tiny.make_loader(task), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(features), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), tiny.MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        average.update()
        total += loss.detach()
        if step % tiny.LOG_EVERY == 0:
            log(step, total)
        if step == task.steps:
            break
    return model


class Average:
    """A moving average of a model's weights, in one call for all of them."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [parameter.detach() for parameter in model.parameters()]
        self.shadow = [weight.clone() for weight in self.weights]
        self.updates = 0

    def update(self) -> None:
        """Once after each step; held down at first."""
        decay = min(tiny.EMA_DECAY, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, self.weights, 1 - decay)
        self.updates += 1


def log(step: int, total: torch.Tensor) -> None:
    """The one read of the loss in 50 steps."""
    print(f"step {step}  loss {total.item() / tiny.LOG_EVERY:.4f}", file=sys.stderr)
    total.zero_()
