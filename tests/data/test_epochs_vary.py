"""Epochs whose number of batches differs: the data's own end ends them, and lengths follow it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data import get_worker_info as worker

import plugin_trainer

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}


class Batches:
    """Forty rows in so many shuffled batches, by epoch."""

    def __init__(self, sizes, promised=None):
        self.sizes, self.epoch, self.promised = sizes, 0, promised

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.promised or self.sizes[self.epoch]

    def __iter__(self):
        order = random.Random(self.epoch).sample(range(40), 40)
        count = self.sizes[self.epoch]
        return iter([order[i::count] for i in range(count)])


class Model(nn.Linear):
    """Notes the rows that it is trained on."""

    def __init__(self):
        super().__init__(4, 2)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen += x[:, 0].int().tolist()
        return super().forward(x * 0)


class Steps:
    """Notes the steps at which epochs end, and what was evaluated and saved there."""

    def __init__(self):
        self.epochs, self.evaluated, self.saved = [], [], []

    def ptrain_epoch_end(self, run):
        self.epochs.append(run.progress.step)

    def ptrain_evaluation_end(self, run, metrics):
        self.evaluated.append(run.progress.step)

    def ptrain_checkpoint_committed(self, run):
        self.saved.append(run.progress.step)


ROWS = TensorDataset(torch.arange(40.0).repeat(4, 1).T, torch.arange(40) % 2)


def trained(batches, folder, *callbacks, **settings):
    model, steps = Model(), Steps()
    result = plugin_trainer.fit(
        model, DataLoader(ROWS, batch_sampler=batches), DataLoader(ROWS, 40), out=folder,
        loss=nn.CrossEntropyLoss(),
        **{**QUIET, "length": "3 epochs", "callbacks": [*QUIET["callbacks"], steps, *callbacks],
           **settings},
    )  # fmt: skip
    return result, model.seen, steps


@pytest.mark.parametrize("sizes", [(10, 10, 12), (12, 10, 10), (4, 1, 20)])
@pytest.mark.parametrize("promised", [None, 9, 25])
def test_every_row_is_trained_on_once_an_epoch_whatever_was_promised(tmp_path, sizes, promised):
    result, seen, steps = trained(Batches(sizes, promised), tmp_path / "run")
    assert sorted(seen) == sorted([*range(40)] * 3)
    ends = [sizes[0], sizes[0] + sizes[1], sum(sizes)]
    assert steps.epochs == steps.evaluated == steps.saved == ends
    assert (result.status, result.step, result.epoch) == ("finished", sum(sizes), 2)


def test_accumulation_does_not_reach_into_the_next_epoch(tmp_path):
    _, seen, steps = trained(Batches((5, 3, 2), 7), tmp_path / "run", accumulate=2)
    assert sorted(seen) == sorted([*range(40)] * 3)
    assert steps.epochs == [3, 5, 6]


class Interrupts:
    def __init__(self, at):
        self.at = at

    def ptrain_step_end(self, run):
        if run.progress.step == self.at:
            run.interrupt("enough", signal=15)


@pytest.mark.parametrize("at", [3, 4, 5, 7])
def test_it_resumes_where_it_was(tmp_path, at):
    sizes = (4, 1, 3)
    _, whole, _ = trained(Batches(sizes), tmp_path / "whole")
    _, first, before = trained(Batches(sizes), tmp_path / "parts", Interrupts(at))
    result, rest, after = trained(Batches(sizes), tmp_path / "parts", resume="auto")
    assert first + rest == whole
    assert before.epochs + after.epochs == [4, 5, 8]
    assert (result.status, result.step) == ("finished", 8)


def test_parts_of_epochs_are_told_by_what_the_first_promises(tmp_path):
    result, _, _ = trained(Batches((10, 10, 12)), tmp_path / "run", length="2.5 epochs")
    assert result.step == 25


class Shards(IterableDataset):
    """Twelve rows, dealt out to the workers; promises one batch less, or more."""

    def __init__(self, promised):
        self.promised = promised

    def __len__(self):
        return self.promised

    def __iter__(self):
        info = worker()
        rank, count = (info.id, info.num_workers) if info else (0, 1)
        return iter([ROWS[i] for i in range(rank, 12, count)])


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("promised", [12, 8, 20])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_sized_iterable_ends_where_it_ends(tmp_path, promised, drop_last, workers):
    """Batches of four: three, or of two workers' six rows two each, the second short."""
    loader = DataLoader(Shards(promised), 4, drop_last=drop_last, num_workers=workers)
    model, steps = Model(), Steps()
    result = plugin_trainer.fit(
        model, loader, loss=nn.CrossEntropyLoss(), length="2 epochs", out=tmp_path / "run",
        **{**QUIET, "callbacks": [*QUIET["callbacks"], steps]},
    )  # fmt: skip
    each = (2 if drop_last else 4) if workers else 3
    assert result.step == 2 * each
    assert steps.epochs == [each, 2 * each]


# ------------------------------------------------------------------------------------- set_epoch


class Rows(Dataset):
    """Each row is the epoch it was made in."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.full((4,), float(self.epoch)), torch.tensor(i % 2)


@pytest.mark.process
@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}],
    ids=["none", "workers", "persistent"],
)  # fmt: skip
def test_a_map_style_data_set_makes_the_rows_of_its_epoch(tmp_path, options):
    model = Model()
    plugin_trainer.fit(
        model, DataLoader(Rows(), 4, **options), loss=nn.CrossEntropyLoss(), length="3 epochs",
        out=tmp_path / "run", **QUIET,
    )  # fmt: skip
    assert model.seen == [epoch for epoch in range(3) for _ in range(8)]


def test_an_epoch_starts_before_its_first_batch_is_loaded(tmp_path):
    class Told(Rows):
        def set_epoch(self, epoch):
            self.told = epoch

        def __getitem__(self, i):
            return torch.full((4,), float(self.by_callback)), torch.tensor(i % 2)

    class Tells:
        def ptrain_epoch_start(self, run):
            rows.by_callback = run.progress.epoch
            assert run.progress.batch == 0

    rows, model = Told(), Model()
    plugin_trainer.fit(
        model, DataLoader(rows, 4), loss=nn.CrossEntropyLoss(), length="3 epochs",
        out=tmp_path / "run", **{**QUIET, "callbacks": [*QUIET["callbacks"], Tells()]},
    )  # fmt: skip
    assert model.seen == [epoch for epoch in range(3) for _ in range(8)]
    assert rows.told == 2
