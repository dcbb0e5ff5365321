"""The Trainer of Hugging Face transformers on the same work; it has no average of the weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from . import tiny
from .tiny import Task


class TinyWithLoss(tiny.Tiny):
    """The model as this trainer wants it: it computes its own loss, from named arguments."""

    def forward(self, features, labels):
        logits = super().forward(features)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(Trainer):
    """For the comparison of weights: this trainer always shuffles."""

    def _get_train_sampler(self, train_dataset=None):
        return None


def with_default_callbacks(task: Task) -> nn.Module:
    """With its progress bar."""
    return _train(task)


def without_callbacks(task: Task) -> nn.Module:
    """Without it."""
    return _train(task, disable_tqdm=True)


def _train(task: Task, **options: Any) -> nn.Module:
    def collate(rows: list[Any]) -> dict[str, Any]:
        features, labels = task.collate(rows)
        return {"features": features, "labels": labels}

    model = tiny.make_model(TinyWithLoss)
    optimizer = tiny.make_optimizer(model)
    trainer = (Trainer if task.shuffle else InOrder)(
        model,
        TrainingArguments(
            output_dir=str(task.folder / "hf"),
            max_steps=task.steps,
            per_device_train_batch_size=tiny.BATCH_SIZE,
            max_grad_norm=tiny.MAX_GRAD_NORM,
            logging_steps=tiny.LOG_EVERY,
            save_strategy="no",
            eval_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            **options,
        ),
        train_dataset=tiny.make_rows(task),
        data_collator=collate,
        optimizers=(optimizer, tiny.make_schedule(optimizer, steps=task.steps)),
    )
    trainer.train()
    return model
