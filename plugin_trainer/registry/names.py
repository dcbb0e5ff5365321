"""What a plugin, and what it offers, may be called; and the nearest name to a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAME = re.compile(r"[a-z][a-z0-9_]*")
NAME_RULE = "a lower-case letter, then lower-case letters, digits and underscores"

TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
TARGET_RULE = '"package.module:attribute"'

LOCAL_MODULE = "ptrain_local_"
"""What the stem of a one-file plugin is prefixed with: toy.py is never taken for a module `toy`."""

CORE = "core"
"""The name of the plugin that holds this package's own callbacks and schedules."""

RESERVED_NAMES = frozenset(
    {
        CORE,
        "calibrate",
        "config",
        "evaluate",
        "help",
        "kernels",
        "models",
        "plugins",
        "predict",
        "run",
        "runs",
        "study",
        "tune",
        "verify_resume",
    }
)
"""Names that no plugin may have: a plugin's commands live under its own name, beside these."""


def top_package(target: str) -> str:
    """The first part of "package.module:attribute"."""
    return target.partition(":")[0].partition(".")[0].strip()


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like the word, if any is like it at all."""
    import difflib  # only a mistake pays for this import

    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else None
