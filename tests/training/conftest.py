"""A tiny training run: a linear classifier on a few rows, written into the test's own folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer

QUIET = ("-progress_bar", "-tensorboard")


def rows(count: int = 12, *, seed: int = 0, dtype=torch.float32) -> TensorDataset:
    """Points with four features and the class that their first feature tells."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator, dtype=dtype)
    return TensorDataset(features, (features[:, 0] > 0).long())


def loader(count: int = 12, *, batch_size: int = 4, shuffle: bool = True, **options) -> DataLoader:
    return DataLoader(rows(count, **options), batch_size=batch_size, shuffle=shuffle)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 2)


@pytest.fixture
def toy():
    """The parts of the run, for tests that build it themselves."""

    class Toy:
        rows = staticmethod(rows)
        loader = staticmethod(loader)
        net = staticmethod(net)
        quiet = QUIET

    return Toy


@pytest.fixture
def fit(tmp_path):
    """plugin_trainer.fit for 2 epochs of 3 steps, with everything replaceable; prints nothing."""

    def run(model=None, train=None, validation=None, *, callbacks=(), out="run", **settings):
        if settings.get("loss", "") is None:
            del settings["loss"]
        else:
            settings.setdefault("loss", nn.functional.cross_entropy)
        return plugin_trainer.fit(
            net() if model is None else model,
            loader() if train is None else train,
            validation,
            callbacks=[*QUIET, *callbacks],
            out=tmp_path / out,
            notify=settings.pop("notify", lambda line: None),
            **{"length": "2 epochs", **settings},
        )

    return run


@pytest.fixture
def metrics_of():
    """The lines of a run's metrics.jsonl."""

    def read(run: Path) -> list[dict]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    return read
