"""The sources of the kernels: where they lie, which of them are compiled, and their digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plugin_trainer.ops.building.memo import PACKAGE

# What takes part. Headers count for the digest, whoever includes them.
FOLDERS = ("core", "binding", "cuda")
_SUFFIXES = (".cpp", ".cu", ".h", ".cuh", ".inl")

# The longest to compile, in this order: what is begun last should not be what all wait for.
_LONGEST = (
    "cuda/halting.cu",
    "binding/ops.cpp",
    "core/halting.cpp",
    "core/step.cpp",
    "core/ema.cpp",
)


@dataclass(frozen=True)
class Sources:
    """The files of one copy of the sources.

    folder  holds core/, binding/ and cuda/
    files   paths below it, sorted: the same on every machine
    digest  sha256 over their names and bytes, in hex
    """

    folder: Path
    files: tuple[str, ...]
    digest: str

    def to_compile(self, *, cuda: bool) -> list[str]:
        """Absolute paths of the translation units. No two may have one name: ema.cpp, ema.cu."""
        first = [file for file in _LONGEST if file in self.files]
        return [
            str(self.folder / file)
            for file in (*first, *(file for file in self.files if file not in first))
            if file.endswith((".cpp", ".cu")) and (cuda or not file.startswith("cuda/"))
        ]


def find_sources(folders: Iterable[Path] | None = None) -> Sources | None:
    """The sources beside this package: `_csrc` of a wheel, or `csrc` of a checkout; None if absent.

    folders  where to look instead
    """
    for folder in folders or (PACKAGE / "_csrc", PACKAGE.parent / "csrc"):
        if (folder / "binding" / "ops.cpp").is_file():
            return _read(folder)
    return None


def _read(folder: Path) -> Sources:
    # Plain strings and os calls: this runs before the first step of every process (0.3 ms of 1).
    files = []
    for part in FOLDERS:
        try:
            names = os.listdir(folder / part)  # noqa: PTH208
        except FileNotFoundError:
            continue
        files += [f"{part}/{name}" for name in names if name.endswith(_SUFFIXES)]
    files.sort()
    digest = hashlib.sha256()
    for file in files:
        with open(f"{folder}/{file}", "rb", buffering=0) as stream:  # noqa: PTH123
            content = stream.read()
        digest.update(f"{file}\0{len(content)}\0".encode())
        digest.update(content)
    return Sources(folder, tuple(files), digest.hexdigest())
