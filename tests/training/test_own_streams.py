"""A random stream of a user's own is not in a checkpoint, and that is said at the start."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import plugin_trainer
from plugin_trainer.run_folder import RunFolder


class Rows(Dataset):
    def __init__(self, **own):
        self.__dict__.update(own)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index)), index % 2


class Jitter:
    """What a data set may hold: something of the user's own that draws."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, batch):
        return torch.utils.data.default_collate(batch)


class Stateful(Rows):
    def state_dict(self):
        return {}


class Noisy(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.luck = torch.Generator()


class Keeps(Noisy):
    def get_extra_state(self):
        return self.luck.get_state()

    def set_extra_state(self, state):
        self.luck.set_state(state)


STREAMS = {
    "numpy": (Rows(rng=np.random.default_rng(0)), "Rows.rng"),
    "old numpy": (Rows(rng=np.random.RandomState(0)), "Rows.rng"),
    "python": (Rows(luck=random.Random(0)), "Rows.luck"),
    "torch": (Rows(luck=torch.Generator()), "Rows.luck"),
    "within": (Rows(transforms=[Jitter()]), "Jitter.rng"),
    "wrapped": (Subset(Rows(rng=np.random.default_rng(0)), range(8)), "Rows.rng"),
    "collate": (DataLoader(Rows(), batch_size=4, collate_fn=Jitter()), "Jitter.rng"),
    "none": (Rows(count=3), ""),
    "stateful": (Stateful(rng=np.random.default_rng(0)), ""),
}
MODELS = {"module": (Noisy, "Noisy.luck"), "extra state": (Keeps, ""), "plain": (None, "")}


def why_inexact(folder, model, data, validation=None):
    lines = []
    plugin_trainer.fit(
        model, data, validation, loss="CrossEntropyLoss", length="1 step", out=folder,
        callbacks=["-tensorboard", "-progress_bar"], notify=lines.append,
    )  # fmt: skip
    because = RunFolder(folder).read_about()["inexact_because"]
    assert any(because in line and "not be exact" in line for line in lines) or not because
    return because


@pytest.mark.parametrize(("data", "named"), STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_stream_of_the_datas_own_is_announced(tmp_path, data, named, split):
    loaders = (data,) if split == "training" else (Rows(), data)
    because = why_inexact(tmp_path / "run", nn.Linear(4, 2), *loaders)
    assert (named in because) if named else not because


@pytest.mark.parametrize(("model", "named"), MODELS.values(), ids=MODELS.keys())
def test_a_stream_of_the_models_own_is_announced(tmp_path, model, named):
    because = why_inexact(tmp_path / "run", model() if model else nn.Linear(4, 2), Rows())
    assert (named in because) if named else not because
