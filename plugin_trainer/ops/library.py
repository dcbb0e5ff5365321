"""Finds the compiled kernels once, and knows in words why there are none.

PTRAIN_KERNELS says what is wanted: `auto` (the default) uses the compiled library where it can be
had, `off` never does, `require` makes its absence an error. PTRAIN_KERNELS_LIBRARY names a library
to use instead of looking for one.

Looked for in this order: the named one, the one that the wheel carries, a cache, and then it is
built, which takes some seconds, once. Where that cannot be, the references do the work.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from plugin_trainer.errors import PtrainError
from plugin_trainer.ops.building import memo

VARIABLE = "PTRAIN_KERNELS"
CHOICES = ("auto", "off", "require")
GIVEN = "PTRAIN_KERNELS_LIBRARY"

# What an op must do once its kernels are there: fake kernels and autograd. Each has `register()`.
NATIVE = (
    "plugin_trainer.ops.ema.native",
    "plugin_trainer.ops.step.native",
    "plugin_trainer.ops.norm.native",
    "plugin_trainer.ops.halting.native",
)


@dataclass(frozen=True)
class Compiled:
    """The compiled library: `torch.ops.ptrain.*` are registered in this process.

    path    the file
    origin  "given", "prebuilt", "cached" or "built"
    cuda    whether it has CUDA kernels
    """

    path: Path
    origin: str
    cuda: bool

    @property
    def instruction_set(self) -> str:
        """What the CPU kernels use here: "avx512", "avx2" or "baseline"."""
        return str(torch.ops.ptrain.isa())


@dataclass(frozen=True)
class Status:
    """What `find` found, for a person to read.

    wanted    the value of PTRAIN_KERNELS
    compiled  the library, or None if the references are used
    reason    why, in words
    """

    wanted: str
    compiled: Compiled | None
    reason: str

    @property
    def used(self) -> str:
        """In one word: given, prebuilt, cached, built, reference or off."""
        if self.compiled is not None:
            return self.compiled.origin
        return "off" if self.wanted == "off" else "reference"


def find() -> Compiled | None:
    """The compiled library, or None if the references are to be used.

    The first call loads it, or builds it first; later ones cost less than a microsecond.

    Raises PtrainError if PTRAIN_KERNELS is `require` and there is no library, if it is no choice,
    or if the library that PTRAIN_KERNELS_LIBRARY names cannot be loaded.
    """
    wanted = _wanted()
    known = _known.get(wanted)
    if known is None:
        known = status()
    if known.compiled is None and wanted == "require":
        raise PtrainError(
            f"{VARIABLE}=require, but there are no compiled kernels: {known.reason}",
            hint=f"unset {VARIABLE}, or set it to auto: everything works through the references",
        )
    return known.compiled


def _wanted() -> str:
    """The value of PTRAIN_KERNELS as it is now."""
    # os.environ.get of what is not set raises and catches: 0.7 us, in every call of every op.
    if _ENVIRONMENT is not None and _KEY not in _ENVIRONMENT:
        return "auto"
    return os.environ.get(VARIABLE) or "auto"


_ENVIRONMENT: dict[Any, Any] | None = getattr(os.environ, "_data", None)
_KEY = getattr(os.environ, "encodekey", str)(VARIABLE)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def answered_while_compiling(function: _Function) -> _Function:
    """Let torch.compile take the function's answer as it is, and not look into how it is found.

    This is torch.compiler.assume_constant_result, which imports the compiler first: 1.6 s for every
    process that imports an op.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@answered_while_compiling
def has_kernels_for(device_type: str) -> bool:
    """Whether there are compiled kernels for this kind of device ("cpu", "cuda")."""
    compiled = find()
    if compiled is None:
        return False
    return device_type == "cpu" or (device_type == "cuda" and compiled.cuda)


def status(*, build: bool = True) -> Status:
    """What is used and why.

    build  False: only look, and do not build what is not there

    Raises PtrainError as `find` does, but not for `require`.
    """
    wanted = _wanted()
    if wanted not in CHOICES:
        raise PtrainError(
            f"{VARIABLE} is {wanted!r}", hint=f"use one of {', '.join(CHOICES)}, or unset it"
        )
    if wanted == "off":
        return _known.setdefault(wanted, Status(wanted, None, f"{VARIABLE}=off"))
    with _lock:
        if wanted in _known:
            return _known[wanted]
        compiled, reason = _locate(build=build)
        found = Status(wanted, compiled, reason)
        if compiled is not None or build:
            _known[wanted] = found
        return found


# Kept by the variable's value, so that changing it inside a process works.
_known: dict[str, Status] = {}
_located: list[tuple[Compiled | None, str]] = []
_lock = threading.Lock()


def _locate(*, build: bool) -> tuple[Compiled | None, str]:
    """Look once per process; a library stays loaded until the process ends."""
    if not _located:
        found = _look(build=build)
        if found[0] is None and not build:
            return found
        if found[0] is not None:
            _register()
        _located.append(found)
    return _located[0]


def _look(*, build: bool) -> tuple[Compiled | None, str]:
    if os.environ.get(GIVEN):
        return _given(os.environ[GIVEN]), f"compiled kernels that {GIVEN} names"
    if _is_loaded():
        named = [path for path in torch.ops.loaded_libraries if "ptrain" in Path(path).name]
        return _compiled(
            next(iter(named), ""), "given"
        ), "compiled kernels that were loaded before anybody asked"
    if (known := memo.recall()) is not None:
        with contextlib.suppress(OSError):
            torch.ops.load_library(known.path)
            return _compiled(known.path, known.origin), memo.REASONS[known.origin]
    from plugin_trainer.ops.building import builder
    from plugin_trainer.ops.building.toolchain import Unavailable

    # A worker of a loader has its data to prepare, and its parent is about to build.
    may_build = build and torch.utils.data.get_worker_info() is None
    try:
        found = builder.obtain(load=torch.ops.load_library, may_build=may_build)
    except Unavailable as error:
        return None, str(error)
    return _compiled(str(found.path), found.origin), found.reason


def _is_loaded() -> bool:
    return hasattr(torch.ops.ptrain, "has_cuda")


def _given(path: str) -> Compiled:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise PtrainError(
            f"{GIVEN} names a library that cannot be loaded: {error}",
            hint=f"unset {GIVEN}: the kernels are found, or built, without it",
        ) from error
    if not _is_loaded():
        raise PtrainError(
            f"{GIVEN} names a library that holds none of these kernels: {path}",
            hint="ptrain kernels build prints the path of one that does",
        )
    return _compiled(path, "given")


def _compiled(path: str, origin: str) -> Compiled:
    return Compiled(Path(path), origin, bool(torch.ops.ptrain.has_cuda()))


def _register() -> None:
    """Tell torch.compile of the ops.

    torch asks `inspect` which module each registration comes from, and the first such question goes
    through all modules of the process, reading the disk: most of what a cached load took. Where the
    answer is noted beforehand it is found at once.
    """
    for name in NATIVE:
        module = importlib.import_module(name)
        if module.__file__ is not None:
            _modules_by_file.setdefault(module.__file__, name)
        module.register()


_modules_by_file: dict[str, str] = getattr(inspect, "modulesbyfile", {})


def _after_fork() -> None:
    """A child must not wait for a lock that a thread of its parent holds."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
