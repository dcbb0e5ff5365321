"""What one of three processes finds when it evaluates alone, with one other and with both.

Run by test_evaluation_together.py, once for each process: rank, where they meet, where to write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import CatMetric, MeanMetric, Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC
from torchmetrics.wrappers import MinMaxMetric

from plugin_trainer import StepOutcome
from plugin_trainer.data import Fed
from plugin_trainer.data.share import StandIn
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings import RunSettings
from plugin_trainer.training import step
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.evaluation import score
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.metrics.running_mean import Meter
from plugin_trainer.training.metrics.speed import Speed
from plugin_trainer.training.metrics.task_shares import TaskShares
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.optim.precision import pick_precision
from plugin_trainer.training.sanity_check import rehearse

CPU = torch.device("cpu")
CLASSES = 3


class Rows(Dataset):
    """Rows whose labels are partly ignored, and a record of those loaded."""

    def __init__(self, size: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(size, 4, generator=generator)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)
        self.labels[1::5] = -100
        self.loaded = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.loaded += 1
        return {"x": self.x[index], "labels": self.labels[index]}


class Streamed(IterableDataset):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self):
        return (self.rows[index] for index in torch.randperm(len(self.rows)).tolist())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(4, CLASSES)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.linear(x)


# ----------------------------------------------------------------------------------- metrics


class InOrder(Metric):
    """Depends on the order in which it sees things."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", default=[], dist_reduce_fx=None)

    def update(self, values: Tensor) -> None:
        self.seen.append(values)

    def compute(self) -> Tensor:
        seen = torch.cat(self.seen).double()
        return (seen * torch.arange(1, len(seen) + 1)).sum()


class RunningMean(Metric):
    """A mean over updates as a state, and a maximum that does not begin with the least number."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", default=torch.tensor(0.0), dist_reduce_fx="mean")
        self.add_state("largest", default=torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, values: Tensor) -> None:
        self.mean += (values.mean() - self.mean) / self._update_count
        largest = values.max() - 99
        first = self._update_count == 1
        self.largest = largest if first else torch.maximum(self.largest, largest)

    def compute(self) -> Tensor:
        return self.mean + self.largest


class Beside(Metric):
    """Keeps what it adds up in attributes, not in states."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.count = 0.0, 0

    def update(self, values: Tensor) -> None:
        self.total, self.count = self.total + float(values.sum()), self.count + len(values)

    def compute(self) -> Tensor:
        return torch.tensor(self.total / max(self.count, 1))

    def reset(self) -> None:
        super().reset()
        self.total, self.count = 0.0, 0


class Unreduced(Metric):
    """Does not say how its sum is to be reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, values: Tensor) -> None:
        self.total = self.total + values.sum()

    def compute(self) -> Tensor:
        return self.total


def first_logit(outputs: Any, batch: Any) -> tuple[Tensor]:
    return (outputs["logits"][:, 0],)


def two_logits(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return outputs["logits"][:, 0], outputs["logits"][:, 1]


def known(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    valid = batch["labels"] != -100
    return outputs["logits"][valid], batch["labels"][valid]


def metrics() -> dict[str, Any]:
    return {
        "accuracy": MulticlassAccuracy(CLASSES, ignore_index=-100),
        "auroc": Fed(MulticlassAUROC(CLASSES, thresholds=None), feed=known),
        "auroc_with_ignored": MulticlassAUROC(CLASSES, thresholds=None, ignore_index=-100),
        "mean": Fed(MeanMetric(), feed=first_logit),
        "pearson": Fed(PearsonCorrCoef(), feed=two_logits),
        "in_order": Fed(InOrder(), feed=first_logit),
        "running": Fed(RunningMean(), feed=first_logit),
        "composed": Fed(MeanMetric() * 2 + MeanMetric(), feed=first_logit),
    }


def bad_metrics() -> dict[str, Any]:
    return {
        "beside": Fed(Beside(), feed=first_logit),
        "unreduced": Fed(Unreduced(), feed=first_logit),
        "rows": Fed(CatMetric(), feed=first_logit),  # many numbers, but they can be merged
        "extremes": Fed(MinMaxMetric(MeanMetric()), feed=first_logit),  # several numbers
    }


# --------------------------------------------------------------------------------- evaluations


class Witness:
    """Counts the batches that callbacks are told of."""

    def __init__(self) -> None:
        self.batches = 0

    def ptrain_evaluation_batch_end(self, batch: Any) -> None:
        assert not isinstance(batch, StandIn)
        self.batches += 1


def run_of(loader: Any, world: World, offered: dict[str, Any]) -> tuple[Any, Witness]:
    model, witness = Net(), Witness()
    return SimpleNamespace(
        settings=RunSettings(seed=3, batch_size=4),
        model=model,
        data=SimpleNamespace(metrics=lambda: offered),
        device=CPU,
        forward=Forward(model, criterion=functional.cross_entropy),
        precision=pick_precision("fp32", CPU),
        hooks=RunHooks(plugins=[], callbacks=[("witness", witness)], core=step),
        world=world,
        loaders={"val": loader},
        ema=None,
        watched=[],
    ), witness


def loader_of(rows: int, **options: Any) -> DataLoader:
    return DataLoader(Rows(rows), **{"batch_size": 4, **options})


SCENARIOS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "uneven last batch": (lambda: loader_of(26), None),
    "fewer batches than processes": (lambda: loader_of(6, batch_size=6), None),
    "limited": (lambda: loader_of(26), 4),
    "data set": (lambda: Rows(13), None),
    "shuffled": (lambda: loader_of(26, shuffle=True), None),
    "iterable": (lambda: DataLoader(Streamed(Rows(18)), batch_size=4), None),
    "tasks": (lambda: {"a": loader_of(18), "b": loader_of(3, batch_size=3)}, None),
}


def evaluated(name: str, world: World) -> dict[str, Any]:
    make, limit = SCENARIOS[name]
    loader = make()
    offered = {"a": metrics(), "b": metrics()} if isinstance(loader, dict) else metrics()
    run, witness = run_of(loader, world, offered)
    values = score(run, split="val", weights="raw", limit=limit)
    rows = getattr(loader, "dataset", None)
    return {
        "values": {key: value.hex() for key, value in values.items()},
        "passes": run.model.passes,
        "told": witness.batches,
        "loaded": getattr(rows, "loaded", 0),
    }


def rehearsed(world: World) -> dict[str, str]:
    said = {}
    for name, fed in {**metrics(), **bad_metrics()}.items():
        run, _ = run_of(loader_of(26), world, {name: fed})
        try:
            rehearse(run)
            said[name] = ""
        except PtrainError as error:
            said[name] = str(error)
    return said


# -------------------------------------------------------------------------------- log lines


def logged(world: World) -> dict[str, Any]:
    """What every process logs of seven batches of 1 to 7 rows, which they take in turns."""
    meter, shares, speed = Meter(), TaskShares(), Speed()
    for number in range(7):
        rows = number + 1
        task = "often" if number != 5 else "once"
        batch = {"x": torch.zeros(rows), "task": task, "attention_mask": torch.ones(rows, 2)}
        outcome = StepOutcome(
            loss=torch.tensor(1.0 / rows),
            parts={"late": torch.tensor(float(number))} if number == 4 else {},
            count=rows if number % 2 else torch.tensor(rows),
        )
        own = number % world.size == world.rank
        meter.add(outcome if own else StepOutcome(torch.tensor(torch.nan), count=0))
        if own:
            shares.add(batch, outcome)
        shares.add_step([batch], torch.tensor(float(rows)))
        speed.count([batch if own else StandIn(batch)], samples=rows)
    nothing = TaskShares()
    return {
        "meter": meter.means(world),
        "again": meter.means(world),
        "tasks": shares.means(world),
        "speed": speed.per_second(2.0, world),
        "speed_in_no_time": speed.per_second(0.0, world),
        "nothing": nothing.means(world),
    }


def everything(world: World) -> dict[str, Any]:
    return {
        "evaluated": {name: evaluated(name, world) for name in SCENARIOS},
        "logged": logged(world),
        "rehearsed": rehearsed(world) if world.size > 1 else {},
    }


def main(rank: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    found = {"1": everything(ALONE)}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
    found["3"] = everything(World(rank, 3, rank))
    pair = dist.new_group([0, 1])
    if rank < 2:
        found["2"] = everything(World(rank, 2, rank, pair))
    dist.destroy_process_group()
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
