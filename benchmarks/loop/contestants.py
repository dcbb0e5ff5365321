"""Who takes part, and which hand-written loop each is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .tiny import Task


@dataclass(frozen=True)
class Contestant:
    """A loop.

    name      how it is asked for
    title     its row in the table
    target    its function, "module:function"
    against   the hand-written loop with the same features; empty for one of these
    needs     packages that must be installed
    """

    name: str
    title: str
    target: str
    against: str = ""
    needs: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether it can take part."""
        return all(find_spec(package) is not None for package in self.needs)

    def load(self) -> Callable[[Task], Any]:
        """The function that trains."""
        module, _, function = self.target.partition(":")
        train: Callable[[Task], Any] = getattr(import_module(f".{module}", __package__), function)
        return train


_ALL = (
    Contestant("hand", "by hand", "hand:plain"),
    Contestant("hand-cs", "by hand: clipping, schedule", "hand:with_clipping_and_schedule"),
    Contestant("hand-cse", "by hand: clipping, schedule, EMA", "hand:with_all"),
    Contestant(
        "engine",
        "engine, no callbacks",
        "engine:without_callbacks",
        against="hand-cse",
    ),
    Contestant(
        "engine-default",
        "engine, default callbacks",
        "engine:with_default_callbacks",
        against="hand-cse",
    ),
    Contestant(
        "engine-bar",
        "engine, default callbacks, a bar",
        "engine:with_a_bar",
        against="hand-cse",
    ),
    Contestant(
        "accelerate",
        "Accelerate",
        "accelerate:with_all",
        against="hand-cse",
        needs=("accelerate",),
    ),
    Contestant(
        "lightning",
        "Lightning, no callbacks",
        "lightning:without_callbacks",
        against="hand-cse",
        needs=("lightning",),
    ),
    Contestant(
        "lightning-default",
        "Lightning, default callbacks",
        "lightning:with_default_callbacks",
        against="hand-cse",
        needs=("lightning",),
    ),
    Contestant(
        "hf",
        "HF Trainer, no callbacks, no EMA",
        "hf_trainer:without_callbacks",
        against="hand-cs",
        needs=("transformers", "accelerate"),
    ),
    Contestant(
        "hf-default",
        "HF Trainer, default, no EMA",
        "hf_trainer:with_default_callbacks",
        against="hand-cs",
        needs=("transformers", "accelerate"),
    ),
)
CONTESTANTS = {contestant.name: contestant for contestant in _ALL}
