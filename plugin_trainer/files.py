"""Files that survive a crash: written beside, fsynced, and moved into place in one step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fsync_folder(folder: Path) -> None:
    """Make renames inside the folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content last."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise as OSError what libraries in Rust hand on as text: "... (os error 28)"."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old text or the new, never a part."""
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step. What is not finite, and no JSON, is written as text."""
    text = json.dumps(in_json(values), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def in_json(value: Any) -> Any:
    """The value with every NaN and infinity in it as text: JSON has none, and none may be lost."""
    if isinstance(value, Mapping):
        return {name: in_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """A JSON file's value; None if there is no such file, or it is not JSON, or no regular file, or
    larger than any of ours.
    """
    try:
        about = path.stat()
        # A FIFO would be waited for.
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where `read_json` finds none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


_LARGEST = 64 << 20


def sha256_of(path: Path) -> str:
    """The file's hash, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
