"""Write every logged number for TensorBoard."""

from __future__ import annotations

import math
import struct
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.callbacks.settings import TensorBoardSettings
from plugin_trainer.errors import MissingExtra

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run


class TensorBoard:
    """One scalar for each number of each log line, at its optimizer step; pictures and texts that
    callbacks add.

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

    def ptrain_artifact(self, run: Run, name: str, path: Path) -> None:
        """Show a picture or a text."""
        if self._writer is None:
            return
        tag, step = name.removesuffix(path.suffix), run.progress.step
        if path.suffix == ".png" and (picture := _picture(tag, path.read_bytes())) is not None:
            self._writer._get_file_writer().add_summary(picture, step)
        elif path.suffix in (".txt", ".md"):
            self._writer.add_text(tag, path.read_text(encoding="utf-8", errors="replace"), step)

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


def _picture(tag: str, png: bytes) -> Any:
    """A PNG file as TensorBoard has it: as it is, with the size that its header says; None for
    another file.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        return None
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
