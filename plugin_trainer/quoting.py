"""A value as its writer wrote it, for messages: TOML's spelling, cut where it is long."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from typing import Any

_LONGEST_SHOWN = 60


def counted(number: int, noun: str) -> str:
    """A number of things: 1 step, 2 steps."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown(value: Any) -> str:
    """A value as an error quotes it: as TOML has it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (date, time)):
        return value.isoformat()
    is_list = isinstance(value, (list, tuple))
    text = f"[{', '.join(map(shown, value))}]" if is_list else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
