"""Where finished libraries lie, which of them are sound, and how one gets in: by one rename.

<cache>/<what>-<cpu|cuda>-<how>/libptrain.so     `what`: sources, flags, target
                                about.json       `how`: the compilers
<cache>/<what>-<cpu|cuda>-<how>.log              what the compiler said when it failed
<cache>/found-*                                  what the last search found: memo.py
<cache>/ptrain-building-*                        private folders of builds under way, or killed
<cache>/lock
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from plugin_trainer.ops.building.memo import user_cache

LIBRARY = "libptrain.so"
ABOUT = "about.json"
PRIVATE = "ptrain-building-"

# A failed build is tried again by itself after this long; by `ptrain kernels build` at once.
_FAILURE_KEPT_S = 3600.0
# Whoever still needs a library this old builds it once more.
_KEPT_S = 180 * 24 * 3600.0
# The folder may be anyone's: nothing else in it is touched.
_OURS = re.compile(r"[0-9a-f]{16}-(cpu|cuda)-[0-9a-f]{16}(\.log)?|found-[0-9a-f]{16}")


@dataclass(frozen=True)
class About:
    """What is written beside a library.

    sha256, size  of the library: a truncated or damaged one is not loaded
    what          digest of sources, flags and target: a stale one is not loaded
    cuda          whether it has CUDA kernels
    compiler      its first line of --version
    torch         the version whose headers it was built with
    """

    sha256: str
    size: int
    what: str
    cuda: bool
    compiler: str
    torch: str


@dataclass(frozen=True)
class Entry:
    """A finished library in its folder."""

    folder: Path
    about: About

    @property
    def library(self) -> Path:
        """The file to load."""
        return self.folder / LIBRARY


def read_entry(folder: Path) -> Entry | None:
    """The library in a folder if it is whole, byte for byte; None if not."""
    try:
        about = About(**json.loads((folder / ABOUT).read_bytes()))
        library = folder / LIBRARY
        # Size first: a library that was cut short is the common damage.
        if library.stat().st_size != about.size or sha256_of(library) != about.sha256:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return Entry(folder, about)


def write_entry(library: Path, folder: Path, about: About) -> Entry:
    """Put a finished library into a folder that appears complete or not at all.

    The library is moved, not copied: a process that has loaded it keeps the same file. What stands
    in the folder's place, damaged or forced away, goes first.
    """
    beside = private_folder(folder.parent)
    try:
        ready = beside / "ready"
        ready.mkdir()
        library.replace(ready / LIBRARY)
        (ready / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n")
        for path in (ready / LIBRARY, ready / ABOUT, ready):
            _sync(path)
        if folder.exists():
            folder.rename(beside / "old")
        ready.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Entry(folder, about)


def private_folder(cache: Path) -> Path:
    """A new folder of this process alone, on the file system of the cache."""
    return Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{os.getpid()}-", dir=cache))


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def caches() -> Iterator[Path]:
    """The folders to look in and to build in, the preferred one first.

    The second is for a home that is missing or cannot be written: a folder in the system's
    temporary one that belongs to this user alone.
    """
    if (preferred := user_cache()) is not None:
        yield Path(preferred)
    own = Path(tempfile.gettempdir()) / f"plugin_trainer-{os.getuid()}"
    if _is_private(own):
        yield own


def check_writable(cache: Path) -> None:
    """Raise OSError if a library could not be put there; leaves nothing behind."""
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    Path(tempfile.mkdtemp(prefix=PRIVATE, dir=there)).rmdir()


def _is_private(folder: Path) -> bool:
    """Make the folder, or see that nobody else could have put a library there."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    try:
        about = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(about.st_mode)
        and about.st_uid == os.getuid()
        and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def sweep(cache: Path) -> None:
    """Remove what killed builds left, and what has not been written for half a year.

    Only under the lock: then every private folder is stale.
    """
    oldest = time.time() - _KEPT_S
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            ours = _OURS.fullmatch(path.name) is not None
            if path.name.startswith(PRIVATE) or (ours and path.stat().st_mtime < oldest):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def log_of(folder: Path) -> Path:
    """Where the log of an entry's failed build lies."""
    return folder.with_name(f"{folder.name}.log")


def recent_failure(folder: Path) -> str | None:
    """The reason that `write_failure` noted for an entry not long ago, or None."""
    log = log_of(folder)
    try:
        if not 0 <= time.time() - log.stat().st_mtime < _FAILURE_KEPT_S:
            return None
        return log.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return None


def write_failure(folder: Path, reason: str, output: str) -> None:
    """Note why a build failed, for those who would try the same."""
    with contextlib.suppress(OSError):
        log_of(folder).write_text(f"{reason}\n\n{output}")


def forget_failure(folder: Path) -> None:
    """Remove the note of a failed build."""
    with contextlib.suppress(OSError):
        log_of(folder).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
