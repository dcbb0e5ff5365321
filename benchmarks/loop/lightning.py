"""Lightning on the same work, its average by its own callback."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from . import tiny
from .tiny import Task


class Average(WeightAveraging):
    """The average in one call for all weights; EMAWeightAveraging takes them one by one."""

    def __init__(self) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(tiny.EMA_DECAY))

    def on_train_end(self, trainer, module):
        """Leave the model its raw weights, which every contestant ends with."""


class Module(lightning.LightningModule):
    """The model, and how to train it."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.model = tiny.make_model()
        self.steps = steps

    def training_step(self, batch, index):
        features, labels = batch
        loss = functional.cross_entropy(self.model(features), labels)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = tiny.make_optimizer(self.model)
        schedule = tiny.make_schedule(optimizer, steps=self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def with_default_callbacks(task: Task) -> nn.Module:
    """With the progress bar, the summary and the logger that it has unless told otherwise."""
    return _fit(task)


def without_callbacks(task: Task) -> nn.Module:
    """Without them."""
    return _fit(task, logger=False, enable_progress_bar=False, enable_model_summary=False)


def _fit(task: Task, **options: Any) -> nn.Module:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(task.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=task.steps,
            gradient_clip_val=tiny.MAX_GRAD_NORM,
            log_every_n_steps=tiny.LOG_EVERY,
            enable_checkpointing=False,
            default_root_dir=task.folder,
            callbacks=[Average()],
            **options,
        )
        trainer.fit(module, tiny.make_loader(task))
    return module.model
