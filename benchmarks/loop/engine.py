"""This project's engine on the same work: `fit`, and what it does besides."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

import plugin_trainer

from . import tiny
from .tiny import Task


def without_callbacks(task: Task) -> nn.Module:
    """Only what is core: the loop, `metrics.jsonl`, the guard against what is not finite."""
    return _fit(task, callbacks=["-progress_bar", "-tensorboard", "-learning_rate_monitor"])


def with_default_callbacks(task: Task) -> nn.Module:
    """Progress as lines, since nobody looks; TensorBoard if it is installed; learning rates."""
    return _fit(task)


def with_a_bar(task: Task) -> nn.Module:
    """The default callbacks, progress as a bar, as on a terminal."""
    return _fit(task, callback_settings={"progress_bar": {"mode": "bar"}})


def _fit(task: Task, **settings: Any) -> nn.Module:
    result = plugin_trainer.fit(
        tiny.make_model(),
        tiny.make_loader(task),
        loss=functional.cross_entropy,
        length=f"{task.steps} steps",
        optimizer={
            "learning_rate": tiny.LEARNING_RATE,
            "weight_decay": tiny.WEIGHT_DECAY,
            "max_grad_norm": tiny.MAX_GRAD_NORM,
        },
        ema={"decay": tiny.EMA_DECAY},
        log=f"{tiny.LOG_EVERY} steps",
        evaluate="never",
        save="never",
        device="cpu",
        out=task.folder / "run",
        **settings,
    )
    return result.model
