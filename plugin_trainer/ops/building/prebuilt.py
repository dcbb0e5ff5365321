"""The library that a wheel may carry beside the sources, in `plugin_trainer/_kernels`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from plugin_trainer.ops.building.cache import Entry, read_entry, write_entry
from plugin_trainer.ops.building.memo import PACKAGE

FOLDER = PACKAGE / "_kernels"


def find_prebuilt(what: str, *, cuda: bool) -> tuple[Entry | None, str]:
    """The carried library if it serves, and in words why it does not ("" if there is none).

    what  the digest of the sources and flags beside it: in a checkout they move on
    cuda  whether one with CUDA kernels could be built here instead
    """
    if not FOLDER.is_dir():
        return None, ""
    entry = read_entry(FOLDER)
    if entry is None:
        return None, "the one in the package is damaged"
    if entry.about.what != what:
        return None, "the one in the package was built from other sources"
    if cuda and not entry.about.cuda:
        return None, "the one in the package has no CUDA kernels"
    return entry, ""


def write_prebuilt(finished: Path) -> Path:
    """Copy a finished library into the package, so that a wheel built afterwards carries it.

    finished  its folder in a cache

    Raises OSError if the package cannot be written.
    """
    entry = read_entry(finished)
    if entry is None:
        raise FileNotFoundError(f"there is no sound library in {finished}")
    with tempfile.TemporaryDirectory(prefix=".kernels-", dir=FOLDER.parent) as beside:
        copy = Path(shutil.copy2(entry.library, beside))
        written = write_entry(copy, FOLDER, entry.about)
    os.chmod(FOLDER, 0o755)  # noqa: PTH101
    return written.library
