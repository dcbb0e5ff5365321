"""Whatever counts as one number, from a callback or a metric, as Python's own."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from plugin_trainer.errors import PtrainError


def number(name: str, value: Any, *, given_to: str) -> float:
    """A number of Python, NumPy or torch as Python's.

    Raises PtrainError, naming the metric and what it was given to, for anything else.
    """
    if type(value) in (int, float):
        return value
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError  # "3" is as little a number here as "three"
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise PtrainError(
            f"{given_to}: '{name}' is not a number but {type(value).__name__}"
        ) from None


def make_numbers(metrics: MutableMapping[str, Any], *, given_to: str) -> None:
    """Turn every value of a mapping that hooks have filled into a number of Python's, in place."""
    for name, value in metrics.items():
        metrics[name] = number(name, value, given_to=given_to)
