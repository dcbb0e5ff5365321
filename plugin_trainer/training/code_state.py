"""A hash of the code that a run is made of, so that a resume can tell that it has changed."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

_DIGITS = 12


def code_of_plugin(module: object) -> str:
    """The hash of every Python file of the package that a hook module belongs to."""
    name = module.__name__ if isinstance(module, ModuleType) else type(module).__module__
    top = sys.modules.get(name.partition(".")[0])
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    if folders:
        return _hash(sorted(file for folder in folders for file in folder.rglob("*.py")))
    file = getattr(top, "__file__", None)
    return _hash([Path(file)] if file else [])


def code_of_object(thing: object) -> str:
    """The hash of the file that a function, a class, or an object's class is written in; empty if
    there is none, as for what was typed into a notebook.
    """
    written = inspect.isfunction(thing) or inspect.isclass(thing)
    try:
        file = inspect.getsourcefile(thing if written else type(thing))  # type: ignore[arg-type]
    except (TypeError, OSError):
        return ""
    return _hash([Path(file)] if file else [])


def _hash(files: Iterable[Path]) -> str:
    found = [file for file in files if file.is_file()]
    if not found:
        return ""
    digest = hashlib.sha256()
    for file in found:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:_DIGITS]
