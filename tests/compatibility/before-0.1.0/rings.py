"""A plugin in one file: a net with dropout on shuffled rows, and a callback that has state."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from plugin_trainer import CallbackSpec, DataSpec, ModelSpec

PTRAIN_API = 1
HERE = __name__


def ptrain_models():
    return [ModelSpec(name="net", target=f"{HERE}:net", settings=f"{HERE}:NetSettings")]


def ptrain_data():
    return [DataSpec(name="rows", target=f"{HERE}:Rows")]


def ptrain_callbacks():
    return [CallbackSpec(name="counter", target=f"{HERE}:Counter")]


@dataclass(frozen=True, kw_only=True)
class NetSettings:
    width: int = 4


def net(settings, data):
    from torch import nn

    return nn.Sequential(
        nn.Linear(2, settings.width, bias=False),
        nn.BatchNorm1d(settings.width),
        nn.Dropout(0.2),
        nn.Linear(settings.width, 2),
    )


class Rows:
    def train(self):
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        x = torch.arange(48.0).reshape(24, 2) % 7 - 3
        return DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), batch_size=4, shuffle=True)

    validation = train


class Counter:
    def __init__(self):
        self.steps = 0

    def ptrain_step_end(self, run, outcome):
        self.steps += 1
        run.log({"steps_seen": float(self.steps)})
        if os.environ.get("KILL_AT") == str(self.steps):
            os.kill(os.getpid(), signal.SIGKILL)

    def ptrain_checkpoint_save(self, run, state):
        state["steps_seen"] = self.steps

    def ptrain_checkpoint_load(self, run, state):
        self.steps = state["steps_seen"]
