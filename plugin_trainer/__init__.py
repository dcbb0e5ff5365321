"""plugin_trainer: train PyTorch models whose parts are plugins.

The public names. Importing this package imports no torch; what needs it is imported when first
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.hookspecs import hookimpl
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.specs import (
    API_VERSION,
    CallbackSpec,
    DataSpec,
    ModelSpec,
    RecipeSpec,
    SchedulerSpec,
    SpaceSpec,
)

if TYPE_CHECKING:
    from plugin_trainer.training.api import fit, load_run
    from plugin_trainer.training.result import Result

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "CallbackSpec",
    "DataSpec",
    "ModelSpec",
    "PtrainError",
    "RecipeSpec",
    "Result",
    "SchedulerSpec",
    "SpaceSpec",
    "StepOutcome",
    "fit",
    "hookimpl",
    "load_run",
]

_LAZY = {
    "fit": "plugin_trainer.training.api",
    "load_run": "plugin_trainer.training.api",
    "Result": "plugin_trainer.training.result",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
