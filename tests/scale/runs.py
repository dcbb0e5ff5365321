"""Small runs for one process or several: `python runs.py FOLDER ddp|fsdp2 NAME...`.

Each is made in FOLDER/NAME; what came of it is in its metrics.jsonl and its last checkpoint.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from plugin_trainer import fit
from plugin_trainer.callbacks.early_stopping import EarlyStopping
from plugin_trainer.callbacks.settings import EarlyStoppingSettings

CLASSES = 3
IGNORED = -100
STRATEGY = "ddp"


class Rows(Dataset):
    """Rows of numbers and a label each."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 5, generator=generator)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Tokens(Dataset):
    """Sequences of which some positions have no label, in some rows all of them."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(count, 4, 5, generator=generator)
        self.labels = torch.randint(CLASSES, (count, 4), generator=generator)
        self.labels[torch.rand(count, 4, generator=generator) < 0.5] = IGNORED
        self.labels[::3] = IGNORED

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Net(nn.Module):
    """Blocks, and a head for each task; a batch leaves the heads of other tasks out."""

    def __init__(self, heads: tuple[str, ...] = ("only",), *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.heads = nn.ModuleDict({head: nn.Linear(5, CLASSES) for head in heads})

    def forward(self, inputs: Tensor, labels: Tensor, task: str = "only") -> dict[str, Any]:
        for block in self.blocks:
            inputs = block(inputs)
        logits = self.heads[task](self.norm(inputs))
        loss = nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED
        )
        return {"loss": loss, "logits": logits}


class LeavesOut(Net):
    """Has weights that no batch reaches, and some that only every other batch does."""

    def __init__(self) -> None:
        super().__init__(("only", "never"))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("turned", torch.randn(5, 3).t())
        self.register_buffer("empty", torch.empty(0))


def loader(data: Dataset, size: int, **options: Any) -> DataLoader:
    return DataLoader(data, batch_size=size, shuffle=True, **options)


def settings(**changed: Any) -> dict[str, Any]:
    return {
        "length": "2 epochs",
        "evaluate": "1 epoch",
        "log": "3 steps",
        "save": "never",
        "optimizer": {"learning_rate": 0.05, "max_grad_norm": 0.5},
        "ema": {"decay": 0.9},
        "parallel": {"strategy": STRATEGY},
        **changed,
    }


def accuracy() -> dict[str, Any]:
    return {
        "accuracy": MulticlassAccuracy(CLASSES, average="micro"),
        "auroc": MulticlassAUROC(CLASSES),
    }


def plain(out: Path, **changed: Any) -> None:
    """44 rows in batches of 6: the last has 2, and with three processes one has none."""
    validation = DataLoader(Rows(23, seed=1), batch_size=4)
    data = loader(Rows(44), 6)
    fit(Net(), data, validation, metrics=accuracy(), out=out, **settings(**changed))


def accumulated(out: Path) -> None:
    plain(out, accumulate=3)


def sgd(out: Path) -> None:
    plain(out, optimizer={"name": "SGD", "learning_rate": 0.1, "settings": {"momentum": 0.9}})


class Triples:
    """Makes each gradient three times as long, on which clipping depends."""

    def ptrain_before_optimizer_step(self, run: Any) -> None:
        for group in run.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(3.0)


def tripled(out: Path) -> None:
    plain(out, accumulate=3, callbacks=[Triples()])


class Ranked:
    """Adds a number that grows in the first process and falls in the others."""

    def __init__(self) -> None:
        self.count = 0

    def ptrain_evaluation_end(self, run: Any, metrics: Any) -> None:
        self.count += 1
        for weights in ("val", "val_ema"):
            metrics[f"{weights}/own"] = self.count if run.world.is_first else -self.count


def own_metric(out: Path) -> None:
    """The best, the rate and the end go by what a callback adds."""
    own = {"watch": "val/own", "mode": "max"}
    plain(
        out,
        evaluate="2 steps",
        callbacks=[Ranked(), EarlyStopping(EarlyStoppingSettings(**own, patience=1))],
        best=own,
        schedule={"name": "ReduceLROnPlateau"},
        schedule_settings={"patience": 0},
    )


def tokens(out: Path) -> None:
    fit(Net(), loader(Tokens(40), 6), loader(Tokens(7), 6), out=out, **settings(accumulate=2))


def bf16(out: Path) -> None:
    plain(out, precision="bf16")


def fp16(out: Path) -> None:
    plain(out, precision="fp16", accumulate=2)


def left_out(out: Path) -> None:
    fit(LeavesOut(), loader(Rows(44), 6), out=out, **settings())


def tasks(out: Path) -> None:
    data = {"a": loader(Rows(40), 6), "b": loader(Tokens(22), 6)}
    few = {"a": DataLoader(Rows(9), batch_size=4), "b": DataLoader(Tokens(11), batch_size=2)}
    fit(Net(("a", "b")), data, few, out=out, **settings(accumulate=2))


def batch_norm(out: Path) -> None:
    fit(
        Net(norm=True),
        loader(Rows(48), 6),
        DataLoader(Rows(9), batch_size=4),
        out=out,
        **settings(),
    )


RUNS: dict[str, Callable[[Path], None]] = {
    "plain": plain,
    "accumulated": accumulated,
    "sgd": sgd,
    "tripled": tripled,
    "own_metric": own_metric,
    "tokens": tokens,
    "bf16": bf16,
    "fp16": fp16,
    "left_out": left_out,
    "tasks": tasks,
    "batch_norm": batch_norm,
}


def make(folder: Path, names: Iterable[str]) -> None:
    """Make the runs of these names; one process makes them alike by either strategy."""
    for name in names:
        RUNS[name](folder / name)


def leave_word(folder: Path) -> None:
    """Say whether this process, as it ends, can still be reached by the others."""
    (folder / f"reachable-{os.environ['RANK']}").write_text(str(dist.is_initialized()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    atexit.register(leave_word, Path(sys.argv[1]))
    STRATEGY = sys.argv[2]
    make(Path(sys.argv[1]), sys.argv[3:])
