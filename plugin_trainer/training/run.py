"""A run in memory: what the loop works on and what hooks see."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.cadence import EpochEnds, Recurrence
from plugin_trainer.data.stream import TrainStream, Window
from plugin_trainer.run_folder import RunFolder
from plugin_trainer.settings import RunSettings
from plugin_trainer.training.artifacts import Content, write_artifact
from plugin_trainer.training.checkpointing.best import Best
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state
from plugin_trainer.training.distributed.same_data import refuse_other_data
from plugin_trainer.training.distributed.sharding import LocalShards, fitted
from plugin_trainer.training.distributed.together import Together
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.metrics.numbers import make_numbers
from plugin_trainer.training.metrics.running_mean import Meter
from plugin_trainer.training.metrics.speed import Speed
from plugin_trainer.training.metrics.stopwatch import Stopwatch
from plugin_trainer.training.metrics.task_shares import TaskShares
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.optim.ema import Ema
from plugin_trainer.training.optim.guard import Guard
from plugin_trainer.training.optim.precision import Precision
from plugin_trainer.training.optim.schedules import Schedule
from plugin_trainer.training.optim.update import Update
from plugin_trainer.training.progress import Progress
from plugin_trainer.training.result import Status

Cadence = Recurrence | EpochEnds | None


@dataclass(frozen=True)
class Wish:
    """That a run stop, and why.

    signal  the number of the signal that is the reason, else 0
    """

    reason: str
    status: Status
    signal: int = 0

    def outweighs(self, other: Wish) -> bool:
        """Whether it takes the place of another: a run that has come to its own end has ended,
        though a signal came first.
        """
        return self.status == "stopped early" and other.status == "interrupted"


@dataclass(frozen=True)
class Plan:
    """How long the run and its warm-up are, and when things fall due, in optimizer steps.

    total_steps   in which the schedule runs its course
    total_epochs  after which the run ends, where epochs may differ in their number of steps; None
                  where it ends after the steps
    evaluate, save, log   when these fall due; None never does
    schedule      at which steps the schedule makes one
    """

    total_steps: int
    warmup_steps: int
    evaluate: Cadence
    save: Cadence
    log: Cadence
    total_epochs: int | None = None
    schedule: Recurrence = field(default_factory=lambda: Recurrence(Fraction(1)))

    @property
    def schedule_steps(self) -> int:
        """How many steps the schedule makes behind the warm-up."""
        period = self.schedule.period
        return int(self.total_steps // period - self.warmup_steps // period)


@dataclass(eq=False, kw_only=True)
class Run:
    """One run. What hooks may use is listed in plugin_trainer.hookspecs.

    world    this process and those that train with it
    together  how they make one step; None for the only process
    shards   what this process holds of a model that is split over them
    sound    whether the weights are those that `progress.step` steps made: false while an optimizer
             moves them
    signal   the signal that interrupts it
    leaving  the second signal, after which nothing is saved
    notify   is given lines for the user
    tasks    what each task of a mixture gives; None for data that is no mixture
    is_dry   whether it is only a try, of which nothing is kept
    watched  which metrics evaluations must give: (the setting that says so, the metric)
    """

    settings: RunSettings
    model: nn.Module
    data: Any
    device: torch.device
    forward: Forward
    precision: Precision
    scaler: torch.amp.GradScaler | None
    optimizer: torch.optim.Optimizer
    guard: Guard
    update: Update
    schedule: Schedule
    ema: Ema | None
    hooks: RunHooks
    stream: TrainStream
    loaders: Mapping[str, Any]
    plan: Plan
    best: Mapping[str, Best]
    disk: RunFolder
    store: CheckpointStore
    notify: Callable[[str], None] = lambda line: None
    tasks: TaskShares | None = None
    world: World = ALONE
    together: Together | None = None
    shards: LocalShards | None = None
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    speed: Speed = field(default_factory=Speed)
    metrics: dict[str, float] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    grad_norm: Tensor | None = None
    stop_reason: str = ""
    stop_status: Status = "stopped early"
    signal: int = 0
    wish: Wish | None = None
    leaving: int = 0
    sound: bool = True
    restored_best: bool = False
    is_dry: bool = False
    evaluated_at: int = -1
    saved_at: int = -1
    rng: Mapping[str, Any] | None = None
    window: Window = field(default_factory=lambda: Window([], 0, 0, True, False))
    logged: dict[str, Any] = field(default_factory=dict)
    watched: list[tuple[str, str]] = field(default_factory=list)
    not_finite: set[str] = field(default_factory=set)
    in_evaluation: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.disk.path

    def log(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Add numbers to the next log line. A tensor is read only then."""
        for name, value in metrics.items():
            # Detached, or it would keep the whole graph of its step until it is read.
            self.logged[name] = value.detach() if isinstance(value, Tensor) else value

    def log_artifact(self, name: str, content: Content) -> None:
        """Add a file to the run: text, bytes, a figure of matplotlib, or the Path of a file.

        name  under artifacts/ in the run folder, with an ending: "confusion.png". The same name
              again replaces the file

        Loggers get it too: TensorBoard shows .png, .txt and .md at the step, MLflow keeps every
        file. Of several processes only the first one's counts. Raises PtrainError for a name or
        content that is none, and NotSaved if the disk refuses.
        """
        if self.world.is_first:
            self.disk.check_in_place()
            path = write_artifact(self.folder, name, content)
            self.hooks.artifact(run=self, name=name, path=path)

    def watch(self, metric: str, *, setting: str) -> None:
        """Have it found before the first step that evaluations give no such metric. To be called
        when the run starts.
        """
        self.watched.append((setting, metric))

    def request_stop(self, reason: str) -> None:
        """Stop for good after the step at hand, with a checkpoint. The first reason is kept.

        Several processes stop together: after an evaluation at once, otherwise a step later.
        """
        self._wish(Wish(reason, "stopped early"))

    def interrupt(self, reason: str, *, signal: int) -> None:
        """Stop as request_stop does, but as a run that is to be resumed."""
        self._wish(Wish(reason, "interrupted", signal))

    def _wish(self, wish: Wish) -> None:
        if self.wish is None or wish.outweighs(self.wish):
            self.wish = wish
        if self.together is None:
            self._stop(self.wish)

    def agree_to_stop(self) -> None:
        """Stop if any process wants to, and all for the same reason. All must call it."""
        if self.together is not None:
            for wish in self.world.gather(self.wish):
                if wish is not None:
                    self._stop(wish)

    def hear_of_stops(self) -> None:
        """Agree to stop if, as of the step just made, any process wants to."""
        if self.together is not None and self.together.stop_wanted:
            self.agree_to_stop()

    def _stop(self, wish: Wish) -> None:
        before = Wish(self.stop_reason, self.stop_status)
        if not self.stop_reason or wish.outweighs(before):
            self.stop_reason, self.stop_status = wish.reason, wish.status
        self.signal = self.signal or wish.signal

    def report(self, title: str, text: str) -> None:
        """Add a section to what the run prints at its end."""
        self.reports[title] = text

    def load_best(self) -> None:
        """Give the model the raw weights of its best checkpoint. Raises CheckpointError if none."""
        found = self.store.find("best")
        self.restored_best = True
        tested = {name: value for name, value in self.metrics.items() if name.startswith("test")}
        self.metrics.clear()
        self.metrics.update({**self.best["best"].metrics, **tested})
        weights = read_model_state(found.path, weights="raw")
        self.model.load_state_dict(fitted(weights, self.model), strict=False)

    # ------------------------------------------------------------------------- for the loop

    def windows(self) -> Iterator[Window]:
        """The windows still to be trained on; nothing is loaded beyond the last."""
        windows = self.stream.windows(
            epoch=self.progress.epoch, batch=self.progress.batch, begin=self._begin_epoch
        )
        while not self.is_complete and not self.is_stopped:
            self.window = next(windows)
            if self.window.digest:
                refuse_other_data(self.world, self.window.digest, role="training")
            self.stopwatch.lap("data")
            yield self.window

    def _begin_epoch(self, number: int) -> None:
        self.progress.begin_epoch(number)
        self.hooks.epoch_start(run=self)
        self.stopwatch.lap("callbacks")

    def is_due(self, what: Cadence) -> bool:
        """Whether something falls due at the step just made; at the end everything does."""
        if self.is_ending:
            return True
        if what is None:
            return False
        if isinstance(what, EpochEnds):
            return what.is_due(self.progress.epoch) and self.window.last
        return what.is_due(self.progress.step)

    @property
    def is_ending(self) -> bool:
        """Whether the step just made is the last, and the run is not merely interrupted."""
        return self.is_stopped or self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether the whole length is trained."""
        if self.plan.total_epochs is not None:
            return self.progress.completed_epochs >= self.plan.total_epochs
        return self.progress.step >= self.plan.total_steps

    @property
    def is_stopped(self) -> bool:
        """Whether someone asked the run to stop for good."""
        return bool(self.stop_reason) and self.stop_status != "interrupted"

    def report_not_finite(self, metrics: Mapping[str, float]) -> None:
        """Tell the user of a metric that is not finite, once."""
        for name, value in metrics.items():
            if not math.isfinite(value) and name not in self.not_finite:
                self.not_finite.add(name)
                self.notify(f"{name} is {value} at step {self.progress.step}")

    def note_evaluation(self, metrics: Mapping[str, float]) -> list[str]:
        """Keep an evaluation, and say which weight sets it is the best of: "best", "best_ema"."""
        self.metrics = dict(metrics)
        self.evaluated_at = self.progress.step
        self.schedule.evaluated(metrics)
        return [
            pointer
            for pointer, best in self.best.items()
            if best.improved_by(metrics, step=self.progress.step)
        ]

    def write_log(self, metrics: Mapping[str, float], *, training: bool) -> None:
        """Write one line: where the run stands, the training means since the last, an
        evaluation.
        """
        self.guard.settle()
        entries: dict[str, Any] = self._training_metrics() if training else {}
        make_numbers(self.logged, given_to="run.log")
        entries.update(self.logged)
        self.logged.clear()
        entries.update(metrics)
        self.hooks.log(run=self, metrics=entries)
        make_numbers(entries, given_to="ptrain_log")
        self.disk.write_metrics({**self._position(), **entries})
        self.stopwatch.lap("callbacks")

    def _position(self) -> dict[str, Any]:
        progress, per_epoch = self.progress, self.stream.batches_per_epoch
        share = progress.batch / per_epoch if per_epoch else 0.0
        if self.stream.epochs_vary:
            share = 1.0 if self.window.last else min(share, 1.0)
        return {
            "step": progress.step,
            "epoch": round(progress.epoch + share, 6),
            "samples": progress.samples,
            "time": round(time.time(), 3),
        }

    def _training_metrics(self) -> dict[str, Any]:
        # A plugin that makes the whole step itself may tell nothing of its tasks.
        told = self.tasks.means(self.world) if self.tasks is not None else {}
        told = told or self.meter.means(self.world)
        entries: dict[str, Any] = {f"train/{name}": value for name, value in told.items()}
        if self.grad_norm is not None:
            entries["train/grad_norm"] = float(self.grad_norm)
        if self.guard.skipped:
            entries["skipped_steps"] = self.guard.skipped
        entries.update(self.speed.per_second(self.stopwatch.training_seconds(), self.world))
        for phase, seconds in self.stopwatch.seconds().items():
            entries[f"seconds/{phase}"] = round(seconds, 4)
        self.meter.reset()
        if self.tasks is not None:
            self.tasks.reset()
        self.start_clock()
        return entries

    def start_clock(self) -> None:
        """Throughput and times count from here."""
        self.speed.reset()
        self.stopwatch.reset()
