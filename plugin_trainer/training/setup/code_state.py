"""A hash of the code that a run is made of, so that a resume can tell that it has changed."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from plugin_trainer.registry.blame import is_library

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


def code_of(things: Iterable[object]) -> str:
    """The hash of the source of the user's own classes and functions among these, and of the bases
    of those classes; empty if there are none, or their source is not in a file.

    Not of the files around them: what else a script says changes nothing about a run.
    """
    written = {
        code: source
        for thing in things
        for code in (inspect.getmro(thing) if inspect.isclass(thing) else [thing])
        if (source := _own_source(code))
    }
    digest = hashlib.sha256()
    for code in sorted(written, key=lambda code: (code.__module__, code.__qualname__)):  # type: ignore[attr-defined]
        digest.update(written[code].encode() + b"\0")
    return digest.hexdigest()[:_DIGITS] if written else ""


def _own_source(code: object) -> str:
    """What the source of a class or function of the user's own means; empty for another's."""
    if code not in _SOURCES:
        _SOURCES[code] = ""
        if is_users_own(code):
            with contextlib.suppress(TypeError, OSError):
                _SOURCES[code] = _meaning(inspect.getsource(code))  # type: ignore[arg-type]
    return _SOURCES[code]


# As they were when the process first saw them: what is edited later is not what it has loaded.
_SOURCES: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def _meaning(source: str) -> str:
    """Source without comments and layout; as it is where it cannot be parsed, as the line around a
    lambda.
    """
    try:
        return ast.dump(ast.parse(textwrap.dedent(source)))
    except SyntaxError:
        return source


def parts_of(data: object) -> Iterator[object]:
    """The classes and functions that data, or a loss, is made of: data sets, samplers and what
    collates, within loaders and within each other.
    """
    waiting, seen = [data], set[int]()
    while waiting:
        thing = waiting.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing if inspect.isfunction(thing) else type(thing)
        waiting += [getattr(thing, "__dict__", {}).get(name) for name in _HOLDERS]
        if isinstance(thing, functools.partial):
            waiting.append(thing.func)
        elif inspect.ismethod(thing):
            waiting.append(thing.__self__)
        elif isinstance(thing, (Mapping, list, tuple)) and len(thing) < _MANY:
            waiting += thing.values() if isinstance(thing, Mapping) else thing


_HOLDERS = (
    *("train_loader", "validation_loader", "test_loader"),
    *("dataset", "datasets", "sampler", "batch_sampler", "collate_fn"),
)
_MANY = 100
"""A longer list is rows, not data sets."""


def is_users_own(code: object) -> bool:
    """Whether a class or function is of no installed package: of those, versions tell."""
    package = str(getattr(code, "__module__", "")).partition(".")[0]
    if package in ("builtins", "plugin_trainer", "torch") or not hasattr(code, "__qualname__"):
        return False
    try:
        file = Path(inspect.getsourcefile(code) or "").resolve()  # type: ignore[arg-type]
    except (TypeError, OSError):
        return False
    return not is_library(file)


def _hash(files: Iterable[Path]) -> str:
    found = [file for file in files if file.is_file()]
    if not found:
        return ""
    digest = hashlib.sha256()
    for file in found:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:_DIGITS]
