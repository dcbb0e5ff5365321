"""What the processes beside the first see of the run on disk: all of it, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugin_trainer.run_folder import RunFolder
from plugin_trainer.training.checkpointing.store import CheckpointStore


class SeenFolder(RunFolder):
    """A run folder that another process holds and writes."""

    def hold(self) -> None:
        """It is held by the first process."""

    def clean(self) -> None:
        """The first process does it."""

    def empty(self) -> None:
        """The first process does it."""

    def forget_traceback(self) -> None:
        """The first process does it."""

    def write_settings(self, toml: str) -> None:
        """The first process does it."""

    def write_about(self, **entries: Any) -> None:
        """The first process does it."""

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """The first process does it."""

    def count_metrics(self) -> int:
        """The first process knows."""
        return 0

    def cut_metrics_after(self, count: int) -> None:
        """The first process does it."""


class SeenStore(CheckpointStore):
    """The checkpoints that another process writes."""

    def point(self, pointer: str, checkpoint: Path, **about: Any) -> None:
        """The first process does it."""

    def prune(self) -> None:
        """The first process does it."""
