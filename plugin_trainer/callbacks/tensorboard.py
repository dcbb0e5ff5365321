"""Write every logged number for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from plugin_trainer.callbacks.settings import TensorBoardSettings
from plugin_trainer.errors import MissingExtra

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run


class TensorBoard:
    """One scalar for each number of each log line, at its optimizer step.

    A resumed run goes on in the same folder; what an earlier process wrote after the step resumed
    from is marked as void. Raises MissingExtra if tensorboard is not installed.
    """

    def __init__(self, settings: TensorBoardSettings) -> None:
        if find_spec("tensorboard") is None:
            raise MissingExtra(
                "the callback 'tensorboard' needs the package tensorboard",
                hint='install the extra: pip install "plugin-trainer[tensorboard]"',
            )
        self._folder = settings.folder
        self._writer: Any = None

    def ptrain_run_start(self, run: Run) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        purge = run.progress.step + 1 if run.progress.step else None
        self._writer = SummaryWriter(str(run.folder / self._folder), purge_step=purge)

    def ptrain_log(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Write the numbers."""
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(name, value, run.progress.step)

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Close the file."""
        self._close()

    def ptrain_run_failed(self, run: Run, error: BaseException) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
