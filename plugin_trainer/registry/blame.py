"""Say in a few words what an exception was and where it was raised, without a traceback."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath
from types import TracebackType

from plugin_trainer.registry.names import top_package

_REMEDIES = {
    "stack expects each tensor to be equal size": "the rows of a batch differ in shape: give the "
    "loader a collate_fn that pads them (torch.nn.utils.rnn.pad_sequence; for tokens transformers' "
    "DataCollatorWithPadding)",
}
"""What to do about what torch says, by a part of it."""

SEE_DEBUG = "see everything with --debug"
"""The hint that goes with what nobody foresaw."""

_FILE_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def in_words(error: BaseException) -> str:
    """The exception as Python's last traceback line gives it: type and first line of its text."""
    text = str(error).strip().splitlines()
    if _is_from_worker(error):
        return text[-1]  # the last line of the traceback that torch has put into the text
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def raised_at(error: BaseException, *, target: str = "") -> str:
    """Where it was raised, as package/file.py:line; empty if no frame tells.

    target  "package.module:attribute" of what was imported or called. The deepest frame of its
            package is named even if the exception came from a library that it called; the frames of
            this registry blame nobody
    """
    if _is_from_worker(error):
        files = _FILE_LINE.findall(str(error))
        return f"{'/'.join(PurePath(files[-1][0]).parts[-2:])}:{files[-1][1]}" if files else ""
    package = top_package(target)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{'/'.join(PurePath(error.filename).parts[-2:])}:{error.lineno or 0}"
    frames = list(_frames(error.__traceback__))
    if package:
        own = [frame for frame in frames if frame[0].partition(".")[0] == package]
        frames = [frame for frame in own if not _is_registry(frame[0])]
    # The line of a user's own that led there says more than the one of a library that gave up.
    users = [frame for frame in frames if not is_library(frame[1])]
    module, file, line = (users or frames or [("", PurePath(), 0)])[-1]
    return f"{_short(module, file)}:{line}" if module else ""


def what_and_where(error: BaseException, *, target: str = "") -> list[str]:
    """A line for what it was and, as far as is known, for where and for what to do about it.

    target  as for raised_at
    """
    place = raised_at(error, target=target)
    remedies = [remedy for text, remedy in _REMEDIES.items() if text in str(error)]
    return [in_words(error), *([f"raised at {place}"] if place else []), *remedies]


def hint_for(error: BaseException, *, target: str = "") -> list[str]:
    """The hint for what nobody foresaw: what it was, where, and how to see the traceback."""
    return [*what_and_where(error, target=target), SEE_DEBUG]


def _is_from_worker(error: BaseException) -> bool:
    """Whether it was raised in a worker of a loader, whose traceback came over as text."""
    return str(error).startswith("Caught ") and "Original Traceback" in str(error)


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, PurePath, int]]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith("<frozen "):
            module = str(traceback.tb_frame.f_globals.get("__name__", ""))
            yield module, PurePath(code.co_filename), traceback.tb_lineno
        traceback = traceback.tb_next


def is_library(file: PurePath) -> bool:
    """Whether a file is Python's own, or of an installed package."""
    return any(file.is_relative_to(folder) for folder in _libraries())


@cache
def _libraries() -> frozenset[Path]:
    """Their folders, as they are named and as they are without links."""
    paths = sysconfig.get_paths()
    named = {Path(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return frozenset(named | {folder.resolve() for folder in named})


def _is_registry(module: str) -> bool:
    return module.startswith("plugin_trainer.registry.")


def _short(module: str, file: PurePath) -> str:
    """The path from the package's folder on: as many parts as the module's name has."""
    parts = module.count(".") + 1 + (file.stem == "__init__")
    return "/".join(file.parts[-parts:])
