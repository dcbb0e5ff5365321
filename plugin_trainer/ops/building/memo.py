"""Remembers which library a search found, for as long as no file that it looked at has changed.

The search reads every source and asks for every compiler, 1.5 ms; this compares the times of change
of the same files, 0.1 ms. A file's status changes with every write and every replacement, whatever
its time of modification is set to, so a stale answer would take more than an edited source.

Imports nothing but what torch has imported already: it runs in every process that uses the kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[2]
CACHE_VARIABLE = "PTRAIN_KERNELS_CACHE"

# Everything in the environment that decides which library is wanted.
_VARIABLES = ("CXX", "CC", "PATH", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")

REASONS = {
    "prebuilt": "compiled kernels that the package carries",
    "cached": "compiled kernels that were built before",
    "built": "compiled kernels, built now",
}
"""Why a library of that origin is used."""


def user_cache() -> str | None:
    """The preferred cache folder, absolute; None if this user has no home."""
    named = os.environ.get(CACHE_VARIABLE)
    if not named:
        named = (os.environ.get("XDG_CACHE_HOME") or "~/.cache") + "/plugin_trainer"
    path = os.path.expanduser(named)  # noqa: PTH111
    return None if path.startswith("~") else os.path.abspath(path)  # noqa: PTH100


@dataclass(frozen=True)
class Memo:
    """A library that was found sound, and what was looked at for it.

    path      of the library
    origin    "prebuilt" or "cached"
    programs  the compilers; none if there was none
    """

    path: str
    origin: str
    programs: tuple[str, ...]


def recall() -> Memo | None:
    """The library that was found the last time, if everything is as it was then."""
    file = _file()
    if file is None:
        return None
    try:
        with open(file, "rb", buffering=0) as stream:  # noqa: PTH123
            path, origin, programs, stamp = json.loads(stream.read())
        if stamp == _stamp(path, programs):
            return Memo(path, origin, tuple(programs))
    except (OSError, ValueError, TypeError):
        pass
    return None


def remember(memo: Memo) -> None:
    """Note what a search has found; without a cache folder that can be written, it is not noted."""
    file = _file()
    if file is None:
        return
    unique = f"{file}.{os.getpid()}"
    try:
        stamp = _stamp(memo.path, memo.programs)
        with open(unique, "w") as stream:  # noqa: PTH123
            json.dump((memo.path, memo.origin, memo.programs, stamp), stream)
        os.replace(unique, file)  # noqa: PTH105
    except OSError:
        return


def forget() -> None:
    """Remove the note, so that the next search is thorough."""
    file = _file()
    try:
        if file is not None:
            os.unlink(file)  # noqa: PTH108
    except OSError:
        return


def _file() -> str | None:
    """The note's file: one per copy of this package, kind of torch and set of variables."""
    cache = user_cache()
    if cache is None:
        return None
    parts = [str(PACKAGE), str(torch.version.cuda), *(os.environ.get(v, "") for v in _VARIABLES)]
    return f"{cache}/found-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _stamp(library: str, programs: Sequence[str]) -> str:
    """The status of every file that decides: sources, flags, compilers, libraries."""
    seen = []
    for top in (f"{PACKAGE}/_csrc", f"{PACKAGE.parent}/csrc"):
        for part in ("core", "binding", "cuda"):
            try:
                with os.scandir(f"{top}/{part}") as entries:
                    seen += [(entry.path, *_status(entry.stat())) for entry in entries]
            except FileNotFoundError:
                continue
    flags, carried = f"{PACKAGE}/ops/building/toolchain.py", f"{PACKAGE}/_kernels/about.json"
    for path in (*programs, library, flags, carried):
        try:
            seen.append((path, *_status(os.stat(path))))  # noqa: PTH116
        except FileNotFoundError:
            seen.append((path,))
    return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()


def _status(about: os.stat_result) -> tuple[int, ...]:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
