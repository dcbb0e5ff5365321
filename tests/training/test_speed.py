"""How fast a run says it is, and where its time went, by a clock that only the test moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from plugin_trainer.training.metrics import stopwatch
from plugin_trainer.training.metrics.speed import Speed
from plugin_trainer.training.metrics.stopwatch import PHASES, Stopwatch


class Clock:
    """Stands still until somebody takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(stopwatch, "perf_counter", made)
    return made


# What each moment takes. Powers of two, so that no two sums are alike and none is rounded.
LOAD = 0.0625  # a sample
FORWARD = 0.5  # a batch of training
OPTIMIZER = 1.0
CALLBACK = 2.0
EVALUATED = 64.0  # a batch of an evaluation
COMMITTED = 1024.0  # a checkpoint
STARTED = 4096.0  # the start of a run


class Rows(Dataset):
    """Rows that take time to load."""

    def __init__(self, toy, clock, count: int) -> None:
        self.rows, self.clock = toy.rows(count), clock

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        self.clock.now += LOAD
        features, label = self.rows[index]
        # Padding is left out: of its 4 tokens a row has 1 to 4.
        mask = (torch.arange(4) <= index % 4).long()
        return {"features": features, "labels": label, "attention_mask": mask}


class Takes:
    """Takes time at every moment, and notes when log lines are written.

    shown  what showing a log line takes
    """

    def __init__(self, clock, *, shown: float = 0.0) -> None:
        self.clock, self.shown = clock, shown
        self.lines: list[dict] = []

    def ptrain_run_start(self, run):
        self.clock.now += STARTED
        run.optimizer.register_step_post_hook(self.stepped)

    def stepped(self, *_):
        self.clock.now += OPTIMIZER

    def ptrain_forward(self, run):
        if run.model.training:
            self.clock.now += FORWARD

    def ptrain_step_end(self, run):
        self.clock.now += CALLBACK

    def ptrain_evaluation_batch_end(self, run):
        self.clock.now += EVALUATED

    def ptrain_checkpoint_committed(self, run):
        self.clock.now += COMMITTED

    def ptrain_log(self, run, metrics):
        self.lines.append({**metrics, "step": run.progress.step, "clock": self.clock.now})
        self.clock.now += self.shown


class Net(nn.Module):
    """Takes the mask, as models of text do, and does nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)

    def forward(self, features, attention_mask=None):
        return self.linear(features)


def lines_of(fit, toy, clock, *, masked=True, shown=0.0, **settings):
    """The log lines that have training metrics, of an epoch of six steps of four samples."""
    takes = Takes(clock, shown=shown)
    rows = Rows(toy, clock, 24)
    if not masked:
        rows = toy.rows(24)
    fit(
        Net(),
        DataLoader(rows, batch_size=4),
        callbacks=[takes],
        length="1 epoch",
        **{"log": "2 steps", "save": "never", **settings},
    )
    return [line for line in takes.lines if "train/loss" in line]


def phases(line) -> dict[str, float]:
    return {phase: line[f"seconds/{phase}"] for phase in PHASES}


STEP = {
    "data": 4 * LOAD,
    "forward_backward": FORWARD,
    "optimizer": OPTIMIZER,
    "callbacks": CALLBACK,
}
NOTHING = {"evaluation": 0.0, "saving": 0.0}


def test_each_phase_is_told_by_what_it_took(fit, toy, clock):
    lines = lines_of(fit, toy, clock)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert phases(line) == {**{name: 2 * took for name, took in STEP.items()}, **NOTHING}


def test_the_phases_are_all_the_time_between_two_lines(fit, toy, clock):
    validation = DataLoader(toy.rows(8), batch_size=4)
    lines = lines_of(
        fit, toy, clock, validation=validation, evaluate="2 steps", save="2 steps", log="2 steps"
    )
    assert len(lines) == 3
    for before, line in pairwise(lines):
        assert sum(phases(line).values()) == line["clock"] - before["clock"]
    # The evaluation of a line is in it; its checkpoint is written after it and is in the next.
    assert [line["seconds/evaluation"] for line in lines] == [2 * EVALUATED] * 3
    assert [line["seconds/saving"] for line in lines] == [0, COMMITTED, COMMITTED]


@pytest.mark.parametrize("save", ["never", "2 steps"])
def test_what_shows_the_lines_is_a_callback(fit, toy, clock, save):
    lines = lines_of(fit, toy, clock, shown=4096.0, save=save)
    for before, line in pairwise(lines):
        assert sum(phases(line).values()) == line["clock"] - before["clock"]
        assert line["seconds/data"] == 2 * STEP["data"]
        assert line["seconds/saving"] == (COMMITTED if save == "2 steps" else 0)


def test_the_micro_batches_of_a_step_are_loaded_and_passed_one_after_another(fit, toy, clock):
    lines = lines_of(fit, toy, clock, accumulate=2, log="1 steps")
    assert len(lines) == 3
    for line in lines:
        assert phases(line) == {
            **STEP, "data": 8 * LOAD, "forward_backward": 2 * FORWARD, **NOTHING
        }  # fmt: skip
        assert line["samples_per_second"] == round(8 / _training(line), 2)


def _training(line) -> float:
    return sum(took for phase, took in phases(line).items() if phase not in NOTHING)


@pytest.mark.parametrize("evaluate", ["never", "1 steps", "2 steps"])
@pytest.mark.parametrize("save", ["never", "1 steps"])
def test_evaluating_and_saving_make_a_run_no_slower(fit, toy, clock, evaluate, save):
    validation = DataLoader(toy.rows(8), batch_size=4)
    lines = lines_of(fit, toy, clock, validation=validation, evaluate=evaluate, save=save)
    assert [line["samples_per_second"] for line in lines] == [round(8 / 7.5, 2)] * 3
    assert 2 * sum(STEP.values()) == 7.5


def test_tokens_are_those_of_the_mask_and_are_told_where_there_is_one(fit, toy, clock):
    lines = lines_of(fit, toy, clock)
    # In their order, each four rows have 1 + 2 + 3 + 4 tokens.
    assert all(line["tokens_per_second"] == round(20 / 7.5, 2) for line in lines)


def test_without_a_mask_there_are_samples_alone(fit, toy, clock):
    lines = lines_of(fit, toy, clock, masked=False)
    assert all(line["samples_per_second"] == round(8 / 7.0, 2) for line in lines)
    assert not any("tokens_per_second" in line for line in lines)


def test_a_resumed_run_counts_from_its_own_start(fit, toy, clock):
    class Stop:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                run.interrupt("enough", signal=15)

    settings = {"length": "1 epoch", "log": "2 steps", "save": "never"}
    rows = Rows(toy, clock, 24)
    fit(Net(), DataLoader(rows, batch_size=4), callbacks=[Takes(clock), Stop()], **settings)
    takes = Takes(clock)
    fit(Net(), DataLoader(rows, batch_size=4), callbacks=[takes], resume="auto", **settings)
    # One step was made since, of the two that the line is about.
    first = takes.lines[0]
    assert first["step"] == 4
    assert phases(first) == {**STEP, **NOTHING}
    assert first["samples_per_second"] == round(4 / sum(STEP.values()), 2)


def test_a_clock_that_has_not_moved_gives_no_speed(clock):
    speed, watch = Speed(), Stopwatch()
    speed.count([torch.zeros(3, 2)])
    assert speed.per_second(watch.training_seconds()) == {}
    clock.now += 2
    watch.lap("data")
    assert speed.per_second(watch.training_seconds()) == {"samples_per_second": 1.5}
    speed.reset()
    assert speed.per_second(watch.training_seconds()) == {"samples_per_second": 0.0}
