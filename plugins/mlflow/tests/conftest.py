"""What the tests share: a small run, a store read back by MLflow's own client, and forked processes
to which anything may happen.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder of the test's own, one thread, and no word of MLflow from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        if name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, which takes it seconds; tests begin with copies."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Store:
    """A local store, read through MLflow's client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = f"sqlite:///{path}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def runs(self, experiment: str = "ptrain") -> list[Run]:
        """Every run of an experiment, the oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], order_by=["start_time ASC"]))

    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs()
        return run

    def history(self, name: str, run: Run | None = None) -> list[tuple[int, float]]:
        """Every point of a metric, by step, as often as it is there."""
        run = run or self.run()
        points = self.client.get_metric_history(run.info.run_id, name)
        return sorted((point.step, point.value) for point in points)


@pytest.fixture
def store(tmp_path: Path, new_database: Path) -> Store:
    """The embedded store of the current folder."""
    shutil.copy(new_database, tmp_path / "mlflow.db")
    return Store(tmp_path / "mlflow.db")


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Any]:
    """plugin_trainer.fit, logged to MLflow: 4 epochs of 3 steps, each logged, 12 rows."""
    return lambda **options: train(tmp_path / options.pop("out", "run"), **options)


def train(
    out: Path,
    *,
    callbacks: tuple[Any, ...] = (),
    logger: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """The run of the tests. `logger` are the callback's settings; None for no callback."""
    torch.manual_seed(0)
    features = torch.randn(12, 4)
    data = TensorDataset(features, (features[:, 0] > 0).long())
    quiet = ["-progress_bar", "-tensorboard"]
    logger = {"send_every_s": 0.05} if logger is None else logger
    tables = {"callback_settings": {"mlflow/logger": logger}, "plugins": ["mlflow"]}
    return plugin_trainer.fit(
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 2)),
        DataLoader(data, batch_size=4, shuffle=True, num_workers=settings.pop("workers", 0)),
        settings.pop("validation", DataLoader(data, batch_size=4)),
        loss=nn.functional.cross_entropy,
        callbacks=[*quiet, *callbacks],
        out=out,
        notify=lambda line: None,
        **{"length": "4 epochs", "log": "1 steps", **tables, **settings},
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Callable[[], int]]]:
    """Begin to train in a process of its own; what it gives waits for the exit status, negative
    for a signal.

    It is forked, so nothing may train in this process at that moment: whatever lock a thread
    holds then is never released in the other process.
    """
    processes = []

    def start(**options: Any) -> Callable[[], int]:
        process = multiprocessing.get_context("fork").Process(
            target=_train_and_leave, args=(options,)
        )
        process.start()
        processes.append(process)

        def ended() -> int:
            process.join()
            assert process.exitcode is not None
            return process.exitcode

        return ended

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def forked(started: Callable[..., Callable[[], int]]) -> Callable[..., int]:
    """Train in a process of its own; gives its exit status, negative for a signal."""
    return lambda **options: started(**options)()


def _train_and_leave(options: dict[str, Any]) -> None:
    train(Path(options.pop("out", "run")), **options)


class At:
    """Does something after a step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step = step
        self.act = act

    def ptrain_step_end(self, run: Any) -> None:
        if run.progress.step == self.step:
            self.act()


@pytest.fixture
def at() -> type[At]:
    """A callback that does something after a step."""
    return At


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., list[tuple[int, float]]]:
    """A metric as metrics.jsonl has it: (step, value) of each line with it."""

    def read(name: str, out: str = "run") -> list[tuple[int, float]]:
        lines = map(json.loads, (tmp_path / out / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], float(line[name])) for line in lines if name in line]

    return read


def same(one: float, other: float) -> bool:
    """Whether two numbers are the same, NaN like NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))
