"""An evaluation draws the same each time, and so a resumed run evaluates as the whole one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import plugin_trainer

QUIET = ["-progress_bar", "-tensorboard"]


class Noisy(Dataset):
    """Rows with noise of every stream."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return torch.full((4,), noise + i), torch.tensor(i % 2)


class NoisyStream(IterableDataset):
    def __iter__(self):
        return (Noisy()[i] for i in range(12))


def own():
    return torch.Generator().manual_seed(3)


WORKERS = {"num_workers": 1}
KEPT = {"num_workers": 1, "persistent_workers": True}
LOADERS = {
    "plain": lambda: DataLoader(Noisy(), 4),
    "workers": lambda: DataLoader(Noisy(), 4, **WORKERS),
    "kept": lambda: DataLoader(Noisy(), 4, **KEPT),
    "kept stream": lambda: DataLoader(NoisyStream(), 4, **KEPT),
    "kept shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True, **KEPT),
    "generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=own()),
    "generator in workers": lambda: DataLoader(Noisy(), 4, generator=own(), **WORKERS),
    "kept generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=own(), **KEPT),
}


class Sums(nn.Linear):
    """Notes what each evaluation was given, in its order."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(4, 2)
        self.evaluations = []

    def forward(self, x):
        if not self.training:
            self.evaluations[-1].append(float(x.double().sum()))
        return super().forward(x)


class Notes:
    def __init__(self, stop=0):
        self.stop = stop

    def ptrain_evaluation_start(self, run):
        run.model.evaluations.append([])

    def ptrain_run_start(self, run):
        run.model.evaluations.append([])  # the sanity check's

    def ptrain_step_end(self, run):
        if run.progress.step == self.stop:
            run.interrupt("enough", signal=15)


@pytest.mark.process
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_every_evaluation_is_given_the_same_and_a_resumed_one_too(toy, tmp_path, make):
    def trained(folder, stop=0):
        model, loader = Sums(), make()
        state = loader.generator.get_state() if loader.generator is not None else None
        plugin_trainer.fit(
            model, toy.loader(), loader, loss=nn.CrossEntropyLoss(), length="4 steps",
            evaluate="1 step", out=tmp_path / folder, resume="auto", notify=lambda line: None,
            callbacks=[*QUIET, Notes(stop)],
        )  # fmt: skip
        assert state is None or torch.equal(state, loader.generator.get_state())
        return [sums for sums in model.evaluations if len(sums) == 3]

    whole = trained("whole")
    assert len(whole) == 4
    assert all(sums == whole[0] for sums in whole)
    assert len({*whole[0]}) == 3
    first = trained("parts", stop=2)
    rest = trained("parts")
    assert [*first, *rest] == whole
