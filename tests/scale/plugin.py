"""A run with what makes a resume hard in several processes, and a callback by which one of them
meets a fault.

Dropout, noise drawn while loading, running statistics, more than one bucket of gradients, batches
of 6 of which the last of an epoch has 2.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from plugin_trainer import CallbackSpec, DataSpec, ModelSpec

PTRAIN_API = 1
WIDTH = 400


def ptrain_models():
    return [ModelSpec(name="net", target=f"{__name__}:Net", default=True)]


def ptrain_data():
    return [DataSpec(name="rows", target=f"{__name__}:Data", default=True)]


def ptrain_callbacks():
    return [CallbackSpec(name="fault", target=f"{__name__}:Fault")]


class Noisy(Dataset):
    """44 rows; loading one draws, and says that it was loaded where PTRAIN_LOADED names a file."""

    def __init__(self, count: int = 44, *, noise: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(count, 6, generator=generator)
        self.labels = (self.inputs[:, 0] > 0).long()
        self.noise = noise
        self.poisoned = -1

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.noise and (file := os.environ.get("PTRAIN_LOADED")):
            with Path(file).open("a") as log:
                log.write(f"{index}\n")
        if index == self.poisoned:
            raise ValueError(f"row {index} cannot be read")
        noise = self.noise * torch.randn(6)
        return {"inputs": self.inputs[index] + noise, "labels": self.labels[index]}


class SharedOut(IterableDataset):
    """Batches of which each process takes its own, by its number: the engine does that too."""

    def __init__(self, batches: DataLoader) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return islice(iter(self.batches), rank, None, size)


class Data:
    """The rows, loaded by so many workers.

    shared_out  the split whose batches are shared out by code of its own
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        batch: int = 6,
        poisoned: int = -1,
        shared_out: str = "",
        validation_rows: int = 13,
    ) -> None:
        self.workers, self.batch = workers, batch
        self.shared_out, self.validation_rows = shared_out, validation_rows
        self.rows = Noisy()
        self.rows.poisoned = poisoned

    def train(self) -> Any:
        loader = DataLoader(self.rows, self.batch, shuffle=True, num_workers=self.workers)
        return SharedOut(loader) if self.shared_out == "train" else loader

    def validation(self) -> Any:
        loader = DataLoader(Noisy(self.validation_rows, noise=0.0), 4)
        return SharedOut(loader) if self.shared_out == "validation" else loader

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": MulticlassAccuracy(2, average="micro")}


class Net(nn.Module):
    """Wide enough for several buckets."""

    def __init__(self, *, data: Any = None) -> None:
        super().__init__()
        self.first = nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.in_backward: Any = None
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + self.dropout(torch.tanh(block(hidden)))
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        logits = self.last(hidden - self.mean)
        if self.training and self.in_backward is not None:
            logits.register_hook(self.in_backward)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Fault:
    """What PTRAIN_FAULT says: {"rank": 1, "step": 5, "at": "step_end", "do": "kill"}; once, if a
    file is named.
    """

    def __init__(self) -> None:
        self.fault = json.loads(os.environ.get("PTRAIN_FAULT", "{}"))

    def _meet(self, run: Any, at: str) -> None:
        fault = self.fault
        here = run.world.rank, run.progress.step, at
        if not fault or (fault["rank"], fault["step"], fault["at"]) != here:
            return
        self.fault = {}
        if "once" in fault:
            try:
                Path(fault["once"]).touch(exist_ok=False)
            except FileExistsError:
                return
        if fault["do"] == "raise":
            raise ValueError(f"a fault at {at}")
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[fault["do"]])

    def ptrain_epoch_start(self, run: Any) -> None:
        run.model.in_backward = lambda _: self._meet(run, "backward")

    def ptrain_run_start(self, run: Any) -> None:
        self._meet(run, "run_start")

    def ptrain_step_end(self, run: Any) -> None:
        self._meet(run, "step_end")

    def ptrain_move_batch(self, run: Any) -> None:
        if run.model.training:
            self._meet(run, "step")

    def ptrain_evaluation_batch_end(self, run: Any) -> None:
        self._meet(run, "evaluation")

    def ptrain_checkpoint_save(self, run: Any, state: Any) -> None:
        state["process"] = [run.world.rank, run.world.size]
        self._meet(run, "save")

    def ptrain_checkpoint_load(self, run: Any, state: Any) -> None:
        rank, size = state["process"]
        if size == run.world.size and rank != run.world.rank:
            raise ValueError(f"process {run.world.rank} got the state of {rank}")

    def ptrain_log(self, run: Any) -> None:
        self._meet(run, "log")
