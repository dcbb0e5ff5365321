"""Profile a few steps of a run: a trace for a trace viewer, and a table of what took the time."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

from plugin_trainer.callbacks.settings import ProfilerSettings
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.blame import in_words

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run

_RECORDING = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
_OTHER_IS_ACTIVE = "another profiler is active in this process"
_STEP = "ProfilerStep"  # what torch calls the time from one step to the next
_REPORTED = 5


class Profiler:
    """Records windows of steps with torch.profiler and writes each into the run folder.

    A step of the schedule is an optimizer step that this process makes. `ProfilerStep#N` in a trace
    is optimizer step N, and before it the log line, evaluation and checkpoint that follow step
    N - 1. An evaluation is recorded up to its first batch, which cuts the window in two.

    Before the first step, what is wrong stops the run: PtrainError for a folder that cannot be
    written and for another profiler that is active. After it, a profile is not worth a run: what is
    wrong switches the profiler off, with a warning.
    """

    def __init__(self, settings: ProfilerSettings) -> None:
        self._settings = settings
        self._folder = Path()
        self._profiler: Any = None
        self._paused = False
        self._first = 0  # the first step to be recorded
        self._until = 0  # the step after which nothing more is recorded
        self._steps: list[int] = []  # recorded, and not written yet
        self._windows = 0
        self._newest = ""
        self._trouble = ""

    # ------------------------------------------------------------------------------------- hooks

    def ptrain_run_start(self, run: Run) -> None:
        """Start the schedule where the run stands."""
        settings = self._settings
        self._folder = run.folder / settings.folder
        _check_writable(self._folder)
        if _another_is_active():
            raise PtrainError(
                f"the profiler cannot start: {_OTHER_IS_ACTIVE}",
                hint="end that one first, or take 'profiler' out of the run's callbacks",
            )
        # Kineto prints lines of its own at each window unless this is set when it first starts.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        done = run.progress.step
        self._first = done + settings.skip_first + settings.wait + settings.warmup + 1
        cycle = settings.wait + settings.warmup + settings.active
        end = done + settings.skip_first + settings.repeat * cycle
        self._until = min(end, run.plan.total_steps) if settings.repeat else run.plan.total_steps
        _ignore_needless_warnings()
        action_at = schedule(
            skip_first=settings.skip_first,
            wait=settings.wait,
            warmup=settings.warmup,
            active=settings.active,
            repeat=settings.repeat,
        )
        profiler = profile(
            activities=_activities(run.device),
            # It asks for step 0 before it can be told that the first step is `done + 1`.
            schedule=lambda step: action_at(max(step - done - 1, 0)),
            on_trace_ready=partial(self._write, run.device),
            record_shapes=settings.record_shapes,
            profile_memory=settings.memory,
            with_stack=settings.with_stack,
        )
        profiler.step_num = done + 1
        profiler.start()
        self._profiler = profiler

    def ptrain_step_end(self, run: Run) -> None:
        """Go on to the next step; after the last one, let go of everything."""
        profiler = self._profiler
        if profiler is None:
            return
        if self._records:
            self._steps.append(run.progress.step)
        done = run.progress.step >= self._until or self._trouble
        coming = profiler.schedule(profiler.step_num + 1)
        if not done and (coming is ProfilerAction.NONE or self._may_record()):
            profiler.step()
        if done or self._trouble:
            self._close()

    def ptrain_evaluation_batch_end(self, run: Run) -> None:
        """Stop after the first batch of an evaluation: thousands may follow, all of one kind."""
        if self._records:
            self._paused = True
            self._profiler.stop()

    def ptrain_evaluation_end(self, run: Run) -> None:
        """Go on with the window that the evaluation cut in two."""
        if self._paused and not self._trouble and self._may_record():
            self._paused = False
            self._profiler.start()

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Write what is recorded, and report where it is and what took the time."""
        self._close()
        run.report("profiler", self._report(run.progress.step))

    def ptrain_run_failed(self, run: Run, error: BaseException) -> None:
        """Write what is recorded, with what there is of the step that failed."""
        if self._records:
            self._steps.append(run.progress.step + 1)
        self._close()

    # ----------------------------------------------------------------------------------- windows

    @property
    def _records(self) -> bool:
        """Whether this moment is part of a window."""
        return (
            self._profiler is not None
            and not self._paused
            and self._profiler.current_action in _RECORDING
        )

    def _may_record(self) -> bool:
        """Whether recording may begin or go on; if not, the profiler is off from here.

        All profilers of a process share one recorder. To begin while another has it loses what
        that one recorded, and can crash the process.
        """
        if self._records or not _another_is_active():
            return True
        self._profiler, self._paused = None, False
        self._give_up(f"{_OTHER_IS_ACTIVE}; the profiler is off from here")
        return False

    def _give_up(self, why: str) -> None:
        self._trouble = why
        warnings.warn(why, stacklevel=2)

    def _close(self) -> None:
        """Write what is recorded and free it. Does nothing the second time."""
        profiler, self._profiler = self._profiler, None
        recording = profiler is not None and profiler.current_action in _RECORDING
        if profiler is not None and not self._paused and (recording or not _another_is_active()):
            profiler.stop()

    def _write(self, device: torch.device, profiler: Any) -> None:
        """Write the window just recorded. Raises nothing: torch would be left half stopped."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        try:
            path = _free_path(self._folder, step=steps[-1])
            self._newest = self._write_files(path, steps, profiler=profiler, device=device)
            self._windows += 1
        except Exception as error:
            window = _steps_in_words(steps)
            self._give_up(f"the profile of {window} could not be written: {in_words(error)}")

    def _write_files(
        self, path: Path, steps: Sequence[int], *, profiler: Any, device: torch.device
    ) -> str:
        """The trace and the table of a window; returns what the run's report says of it."""
        settings = self._settings
        trace = _write_trace(profiler, path, compress=settings.compress)
        table = path.with_name(f"{path.name}.txt")
        try:
            averages = profiler.key_averages()
        except UnicodeDecodeError:
            # Of Python functions torch keeps where their names are, and some are gone by now.
            text = f"{_steps_in_words(steps)}: no table, for torch lost a function's name; "
            text += "record without with_stack"
            table.write_text(f"{text}\n", encoding="utf-8")
            return f"{text}\n\n{trace}"
        order = _order(settings.sort_by, averages)
        peak = _peak_memory(device) if settings.memory else []
        heading = "\n".join([f"{_steps_in_words(steps)}, by {order}", *peak])
        short = partial(_table, averages, order=order, memory=settings.memory)
        # What a terminal has room for, and then torch's own table, which is wider and says more.
        full = profiler.key_averages(group_by_input_shape=settings.record_shapes)
        torchs = full.table(sort_by=order, row_limit=settings.rows)
        table.write_text(f"{heading}\n\n{short(rows=settings.rows)}\n\n{torchs}", encoding="utf-8")
        return f"{heading}\n{short(rows=_REPORTED)}\n\n{table}\n{trace}"

    def _report(self, step: int) -> str:
        lines = [self._trouble] if self._trouble else []
        if self._windows:
            lines += [self._newest, "open the trace in https://ui.perfetto.dev or chrome://tracing"]
            if self._windows > 1:
                lines.append(f"{self._windows} windows were written, this one last")
        elif not self._trouble:
            lines += [
                f"nothing was recorded: the first window is at step {self._first}, "
                f"and the run ended at step {step}",
                "make skip_first, wait or warmup smaller in [callback_settings.profiler]",
            ]
        return "\n".join(lines)


# ----------------------------------------------------------------------------------------- torch


def _another_is_active() -> bool:
    # The one tells of this thread, the other of every thread, but only of profilers from Python.
    return bool(torch.autograd._profiler_enabled() or torch.autograd.profiler._is_profiler_enabled)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    """The host's, and the device's where torch can record it."""
    of_device = getattr(ProfilerActivity, device.type.upper(), ProfilerActivity.CPU)
    return list({ProfilerActivity.CPU, of_device} & torch.profiler.supported_activities())


def _ignore_needless_warnings() -> None:
    """Torch warns of what is meant: that each window is for itself, and of `warmup = 0`."""
    # Not taken back: that makes Python show again every other warning that it shows once.
    warnings.filterwarnings("ignore", message=".*Profiler clears events at the end")
    warnings.filterwarnings("ignore", message="Profiler won't be using warmup")


# ----------------------------------------------------------------------------------------- files


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PtrainError(
            f"the profiler cannot write to {folder}: {error.strerror}",
            hint="choose another with callback_settings.profiler.folder",
        ) from error


def _free_path(folder: Path, *, step: int) -> Path:
    """Where no file is yet: a resumed run may make a step a second time."""
    name, number = f"step-{step:08d}", 1
    while any(folder.glob(f"{name}.*")):
        number += 1
        name = f"step-{step:08d}-{number}"
    return folder / name


def _write_trace(profiler: Any, path: Path, *, compress: bool) -> Path:
    trace = path.with_name(f"{path.name}.trace.json")
    profiler.export_chrome_trace(str(trace))
    # Kineto only prints that it could not write all of it.
    with trace.open("rb") as file:
        file.seek(max(trace.stat().st_size - 16, 0))
        if not file.read().rstrip().endswith(b"}"):
            raise OSError(f"{trace} is cut short; is the disk full?")
    if not compress:
        return trace
    packed = path.with_name(f"{trace.name}.gz")
    with trace.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    trace.unlink()
    return packed


# ---------------------------------------------------------------------------------------- tables


def _steps_in_words(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _peak_memory(device: torch.device) -> list[str]:
    """The most memory that was in use up to now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    in_bytes = peak if sys.platform == "darwin" else peak * 1024
    lines = [f"peak memory of the process: {in_bytes / 2**20:.1f} MiB"]
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device)
        lines.append(f"peak memory allocated on {device}: {allocated / 2**20:.1f} MiB")
    return lines


def _order(sort_by: str, averages: Sequence[Any]) -> str:
    """What to sort by: on a device, time there if "auto"; without one, its time says nothing."""
    on_device = any(event.self_device_time_total for event in averages)
    if sort_by == "auto":
        return "self_device_time_total" if on_device else "self_cpu_time_total"
    return sort_by if on_device else sort_by.replace("device_time", "cpu_time")


def _table(averages: Sequence[Any], *, order: str, rows: int, memory: bool) -> str:
    """The operators that come first in the order, in at most 80 columns."""
    # Kernels are left out: their time is that of the operators that launched them.
    events = [event for event in averages if event.device_type == DeviceType.CPU]
    host_us = sum(event.self_cpu_time_total for event in events) or 1
    device_us = sum(event.self_device_time_total for event in events)
    between = [event for event in events if event.key.startswith(_STEP)]
    operators = sorted(
        (event for event in events if not event.key.startswith(_STEP)),
        key=lambda event: getattr(event, order),
        reverse=True,
    )
    lines = [["operator (its own time, memory)", "calls", "CPU ms", "CPU %"]]
    if device_us:
        lines[0] += ["device ms", "%"]
    if memory:
        lines[0] += ["MiB"]
    for event in [*operators[:rows], *between]:
        cpu_us, on_device_us = event.self_cpu_time_total, event.self_device_time_total
        cells = [
            _short(event.key),
            str(event.count),
            f"{cpu_us / 1e3:.3f}",
            f"{100 * cpu_us / host_us:.1f}",
        ]
        if device_us:
            cells += [f"{on_device_us / 1e3:.3f}", f"{100 * on_device_us / device_us:.1f}"]
        if memory:
            used = event.self_device_memory_usage if device_us else event.self_cpu_memory_usage
            cells += [f"{used / 2**20:.2f}"]
        lines.append(cells)
    return "\n".join(_row(cells) for cells in lines)


def _short(name: str) -> str:
    """An operator's name in the width there is for it."""
    if name.startswith(_STEP):
        return "in no operator (Python, waiting)"
    name = name.replace("autograd::engine::evaluate_function: ", "autograd: ")
    # Long names differ at their ends: "..._for_cpu", "..._for_cpu_backward".
    return name if len(name) <= 32 else f"{name[:12]}...{name[-17:]}"


def _row(cells: Sequence[str]) -> str:
    widths = (33, 7, 10, 6, 9, 6, 9)
    first, *others = zip(cells, widths[: len(cells)], strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f" {cell:>{width - 1}}" for cell, width in others)
