"""The smallest run: a linear classifier on a few rows, written into the test's own folder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer


@pytest.fixture
def fit(tmp_path):
    """plugin_trainer.fit for 2 epochs of 3 steps on 12 rows, with a validation set."""

    def run(*, callbacks=(), out="run", **settings):
        torch.manual_seed(0)
        features = torch.randn(12, 4)
        data = TensorDataset(features, (features[:, 0] > 0).long())
        return plugin_trainer.fit(
            settings.pop("model", None) or nn.Linear(4, 2),
            DataLoader(data, batch_size=4, shuffle=True),
            settings.pop("validation", DataLoader(data, batch_size=4)),
            loss=nn.functional.cross_entropy,
            callbacks=callbacks,
            out=tmp_path / out,
            notify=lambda line: None,
            **{"length": "2 epochs", **settings},
        )

    return run
