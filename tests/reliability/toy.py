"""A small run with everything that makes resuming hard; also a script, so that it can be killed.

Shuffled data of an uneven length, dropout, augmentation from three random streams in the data set
and in the collate function, an average with warm-up, evaluations that draw random numbers, and a
model that writes down the number of every sample it was trained on.

    python toy.py FOLDER --workers 2 --kill committed:5
    ptrain run --plugin ./toy.py --out FOLDER --resume auto
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import plugin_trainer
from plugin_trainer import DataSpec, ModelSpec

PTRAIN_API = 1
SAMPLES = 23
BATCH = 4
TASKS = {"first": 15, "second": 5, "third": 9}
"""Samples by task: 4, 2 and 3 batches."""


class Noisy(Dataset):
    """Numbered samples; loading one draws from Python's, NumPy's and torch's random streams."""

    def __init__(self, size: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(7)
        self.features = torch.randn(size, 6, generator=generator)
        self.labels = (self.features[:, 0] * self.features[:, 1] > 0).long()
        self.loaded: list[int] = []

    @staticmethod
    def before_loading(index: int) -> None:
        """Replaced by whoever wants to know, or to stand in the way."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.loaded.append(index)
        self.before_loading(index)
        noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1) + 0.1 * torch.randn(())
        return {
            "features": self.features[index] + noise,
            "labels": self.labels[index],
            "number": torch.tensor(index),
        }


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack, scaled by a factor drawn for the batch."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    batch["features"] = batch["features"] * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
    return batch


class Diary(nn.Module):
    """A classifier with dropout whose buffer holds the numbers of all samples it has trained on.

    ballast_mb  what else it carries, so that writing it takes time
    """

    def __init__(self, ballast_mb: float = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(16, 2)
        self.register_buffer("seen", torch.full((400,), -1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if ballast_mb:
            self.register_buffer("ballast", torch.rand(int(ballast_mb * 2**18)))

    def forward(self, features, labels=None, number=None):
        if self.training:
            start = int(self.count)
            self.seen[start : start + len(number)] = number
            self.count += len(number)
        logits = self.output(self.dropout(self.norm(self.hidden(features)).relu()))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Killer:
    """Sends this process a SIGKILL at a moment: "step_end:3", "saving:3", "committed:3", ..."""

    def __init__(self, when: str) -> None:
        self.moment, _, step = when.partition(":")
        self.step = int(step or -1)

    def _at(self, moment: str, run) -> None:
        if moment == self.moment and run.progress.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def ptrain_step_end(self, run, outcome):
        self._at("step_end", run)

    def ptrain_evaluation_batch_end(self, run, weights):
        self._at(f"evaluating_{weights}", run)

    def ptrain_checkpoint_save(self, run, state):
        self._at("saving", run)

    def ptrain_checkpoint_committed(self, run, path):
        self._at("committed", run)


def train(
    out: Path,
    *,
    workers: int = 0,
    named=("early_stopping",),
    callbacks=(),
    dataset=None,
    tasks=None,
    **settings,
):
    """Train the diary for four epochs, saving at every step; goes on with what the folder holds.

    tasks  samples by task, for a mixture in place of one data set
    """
    torch.set_num_threads(1)

    def loader(data: Dataset) -> DataLoader:
        return DataLoader(
            data,
            batch_size=BATCH,
            shuffle=True,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    torch.manual_seed(0)
    return plugin_trainer.fit(
        Diary(),
        {task: loader(Noisy(size)) for task, size in tasks.items()}
        if tasks
        else loader(dataset or Noisy()),
        DataLoader(Noisy(9), batch_size=4, shuffle=True, collate_fn=collate),
        out=out,
        resume="auto",
        notify=lambda line: None,
        callbacks=["-progress_bar", "-tensorboard", *named, *callbacks],
        **{
            "length": "4 epochs",
            "evaluate": "3 steps",
            "save": "1 steps",
            "log": "2 steps",
            "keep": "all",
            "ema": {"decay": 0.9},
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1.0},
            "schedule": {"name": "cosine", "warmup": "20 %"},
            "callback_settings": {name: {"patience": 1000} for name in named},
            **settings,
        },
    )


def cut_back(run: Path, to: Path, *, step: int) -> Path:
    """A copy of a run as it was on disk when its process died right after saving a step."""
    shutil.copytree(run, to)
    for checkpoint in (to / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    about = json.loads((to / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({**about, "status": "running"}))
    return to


def ptrain_models():
    """The diary, for the command line."""
    return [ModelSpec(name="diary", target="ptrain_local_toy:Diary")]


def ptrain_data():
    """The noisy samples, for the command line."""
    return [DataSpec(name="noisy", target="ptrain_local_toy:NoisyData")]


class NoisyData:
    """The noisy samples as a data module, loaded by worker processes."""

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers

    def train(self):
        return DataLoader(
            Noisy(), batch_size=BATCH, shuffle=True, collate_fn=collate, num_workers=self.workers
        )

    def validation(self):
        return DataLoader(Noisy(9), batch_size=4, collate_fn=collate)

    def predict(self, lines):
        rows = [[float(number) for number in line.split()] for line in lines]
        return [{"features": torch.tensor(rows)}]

    def decode(self, outputs, batch):
        return [{"class": int(best)} for best in outputs["logits"].argmax(1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--kill", default="")
    parser.add_argument("--mixture", default="")
    given = parser.parse_args()
    mixed = {"tasks": TASKS, "mixture": {"strategy": given.mixture}} if given.mixture else {}
    train(
        given.out,
        workers=given.workers,
        accumulate=given.accumulate,
        callbacks=[Killer(given.kill)],
        **mixed,
    )


if __name__ == "__main__":
    main()
