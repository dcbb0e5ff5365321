"""The work that every contestant does: a model so small that a loop's own cost shows beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset, default_collate

FEATURES, HIDDEN, CLASSES = 32, 64, 4
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
EMA_DECAY = 0.999
LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """One short training run.

    steps    optimizer steps, all within one epoch
    folder   where to write what has to be written
    collate  makes a batch of rows, and knows by that how far the run is
    shuffle  whether the rows come in random order; if not, all loops end at the same weights
    """

    steps: int
    folder: Path
    collate: Callable[[list[Any]], Any] = default_collate
    shuffle: bool = True


class Tiny(nn.Module):
    """Two layers with a normalisation before each: 8 parameter tensors, 2_500 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(FEATURES)
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.second_norm = nn.LayerNorm(HIDDEN)
        self.second = nn.Linear(HIDDEN, CLASSES)

    def forward(self, features):
        hidden = functional.relu(self.first(self.first_norm(features)))
        return self.second(self.second_norm(hidden))


def make_model(cls: type[Tiny] = Tiny) -> Tiny:
    """The same weights each time."""
    torch.manual_seed(0)
    return cls()


def make_rows(task: Task) -> TensorDataset:
    """A few more rows than the run takes, so that it ends before its epoch does."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((task.steps + 4) * BATCH_SIZE, FEATURES, generator=generator)
    return TensorDataset(features, features[:, :CLASSES].argmax(dim=1))


def make_loader(task: Task) -> DataLoader:
    """A plain loader in this process."""
    return DataLoader(
        make_rows(task), batch_size=BATCH_SIZE, shuffle=task.shuffle, collate_fn=task.collate
    )


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW; biases and normalisations do not decay."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    exempt = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, *, steps: int) -> LambdaLR:
    """A straight line down to zero."""
    return LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))
