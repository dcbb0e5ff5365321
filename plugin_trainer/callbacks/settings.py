"""What core's callbacks take. Imports no torch, so that checking settings needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings:
    """When to stop a run that no longer improves.

    watch         the metric, "val/loss" or any other of an evaluation, "val_ema/..." included
    mode          whether lower ("min") or higher ("max") is better
    patience      how many evaluations in a row may pass without improvement; the run stops at the
                  last
    min_delta     how much better an evaluation must be to count as an improvement
    lower_bound   stop at once when the metric falls below it
    upper_bound   stop at once when the metric rises above it
    restore_best  leave the model in memory with the weights of the best checkpoint
    """

    watch: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    lower_bound: Annotated[float | None, Field(allow_inf_nan=False)] = None
    upper_bound: Annotated[float | None, Field(allow_inf_nan=False)] = None
    restore_best: bool = False


@dataclass(frozen=True, kw_only=True)
class ProgressBarSettings:
    """How progress is shown.

    mode  "auto" (a bar on a terminal, plain lines elsewhere), "bar", "lines" or "off"
    """

    mode: Literal["auto", "bar", "lines", "off"] = "auto"


@dataclass(frozen=True, kw_only=True)
class LearningRateMonitorSettings:
    """Nothing can be set."""


@dataclass(frozen=True, kw_only=True)
class TensorBoardSettings:
    """Where TensorBoard's files go.

    folder  relative to the run folder
    """

    folder: str = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class ProfilerSettings:
    """Which steps to profile, and what to record of them.

    skip_first     steps left alone at the start, which are slower than the others
    wait           steps left alone at the start of each cycle
    warmup         steps recorded and thrown away after that
    active         steps recorded and written: one window
    repeat         how many cycles to go through; 0 for no end
    record_shapes  also what shapes the operators were given
    memory         also what memory the operators took, and the peak
    with_stack     also where in the Python code each operator was called; slower
    compress       write the traces as .json.gz
    folder         relative to the run folder
    rows           operators in a table
    sort_by        what comes first in a table: "auto" (self_device_time_total on a device that
                   torch can record, else self_cpu_time_total), "cpu_time_total",
                   "device_time_total", "self_cpu_memory_usage", "self_device_memory_usage" or
                   "count"
    """

    skip_first: Annotated[int, Field(ge=0)] = 10
    wait: Annotated[int, Field(ge=0)] = 1
    warmup: Annotated[int, Field(ge=0)] = 2
    active: Annotated[int, Field(ge=1)] = 3
    repeat: Annotated[int, Field(ge=0)] = 1
    record_shapes: bool = False
    memory: bool = False
    with_stack: bool = False
    compress: bool = False
    folder: str = "profiler"
    rows: Annotated[int, Field(ge=1)] = 20
    sort_by: Literal[
        "auto",
        "self_cpu_time_total",
        "cpu_time_total",
        "self_device_time_total",
        "device_time_total",
        "self_cpu_memory_usage",
        "self_device_memory_usage",
        "count",
    ] = "auto"

    def __post_init__(self) -> None:
        """Refuse to sort by what is not recorded."""
        if self.sort_by.endswith("memory_usage") and not self.memory:
            raise ValueError(f"sort_by = {self.sort_by!r} needs memory = true")


@dataclass(frozen=True, kw_only=True)
class EarlyExitSettings:
    """What is certified at the end of a run, on the validation rows and without their labels.

    max_disagreement  shares of new rows that may get another answer than from the last block
    confidence        of each of these promises
    """

    max_disagreement: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.02)
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
