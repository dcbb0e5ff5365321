"""Finds the compiled kernels once, and knows in words why there are none.

PTRAIN_KERNELS says what is wanted: `auto` (the default) uses the compiled library where there is
one, `off` never does, `require` makes its absence an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from plugin_trainer.errors import PtrainError

VARIABLE = "PTRAIN_KERNELS"
CHOICES = ("auto", "off", "require")


class CompiledOps(Protocol):
    """What a compiled library offers: the functions of the `reference` modules."""

    ema_update_: Any
    halting_forward: Any
    halting_backward: Any
    halting_exit: Any


@dataclass(frozen=True)
class Status:
    """What `find` found, for a person to read.

    wanted    the value of PTRAIN_KERNELS
    compiled  the library, or None if the references are used
    reason    why, in words
    """

    wanted: str
    compiled: CompiledOps | None
    reason: str


def find() -> CompiledOps | None:
    """The compiled library, or None if the references are to be used.

    Raises PtrainError if PTRAIN_KERNELS is `require` and there is no library, or if it is no
    choice.
    """
    return _find(os.environ.get(VARIABLE) or "auto")


def status() -> Status:
    """What is used and why. Raises only if the value of PTRAIN_KERNELS is none of the choices."""
    return _status(os.environ.get(VARIABLE) or "auto")


# Cached by the variable's value: changing it inside a process works, and a step pays under 1 us.
@cache
def _find(wanted: str) -> CompiledOps | None:
    found = _status(wanted)
    if wanted == "require" and found.compiled is None:
        raise PtrainError(
            f"{VARIABLE}=require, but there are no compiled kernels: {found.reason}",
            hint=f"unset {VARIABLE}, or set it to auto: everything works through the references",
        )
    return found.compiled


@cache
def _status(wanted: str) -> Status:
    if wanted not in CHOICES:
        raise PtrainError(
            f"{VARIABLE} is {wanted!r}", hint=f"use one of {', '.join(CHOICES)}, or unset it"
        )
    if wanted == "off":
        return Status(wanted, None, f"{VARIABLE}=off")
    compiled, reason = _locate()
    return Status(wanted, compiled, reason)


@cache
def _locate() -> tuple[CompiledOps | None, str]:
    return None, "this version of plugin_trainer has no compiled torch library"
