"""Files that callbacks add to a run: figures, tables, whatever is no number."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from plugin_trainer.errors import NotSaved, PtrainError

FOLDER = "artifacts"


class Figure(Protocol):
    """What can draw itself into a file, as a figure of matplotlib does."""

    def savefig(self, fname: IO[bytes], *, format: str) -> object:
        """Write the figure in a format: "png", "svg", "pdf"."""
        ...


Content = str | bytes | Path | Figure
"""Text, bytes, a file to copy, or a figure."""


def write_artifact(run_folder: Path, name: str, content: Content) -> Path:
    """Put a file into a run folder, whole or not at all, in place of one of the same name.

    Raises PtrainError for a name or content that is none, and NotSaved if the disk refuses.
    """
    path = run_folder / FOLDER / _checked(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            _write(content, file, name=name)
    except OSError as error:
        raise NotSaved(
            f"the artifact {path} could not be written: {error.strerror or error}"
        ) from error
    return path


def _write(content: Content, file: IO[bytes], *, name: str) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    elif isinstance(content, (str, bytes)):
        file.write(content.encode() if isinstance(content, str) else content)
    elif hasattr(content, "savefig"):
        content.savefig(file, format=PurePosixPath(name).suffix.removeprefix("."))
    else:
        raise PtrainError(
            f"run.log_artifact: '{name}' was given a {type(content).__name__}",
            hint="give text, bytes, the Path of a file, or a figure of matplotlib",
        )


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    if not path.suffix or path.is_absolute() or hidden or "\0" in name:
        raise PtrainError(
            f"run.log_artifact: '{name}' is no name for a file of the run",
            hint="give a relative one with an ending, such as confusion/step-100.png",
        )
    return path
