"""The kernels of plugin_trainer as plain functions, each with a reference that runs everywhere.

A function here uses the compiled library where there is one and its reference where there is none;
the caller sees no difference but the speed. `library.status()` says which it is, and why.
"""

from __future__ import annotations

from plugin_trainer.ops.ema import ema_decay, ema_update_
from plugin_trainer.ops.halting import HaltingExit, HaltingLoss, halting_exit, halting_loss
from plugin_trainer.ops.norm import grad_norm
from plugin_trainer.ops.step import FusedAdamW, fused_step_

__all__ = [
    "FusedAdamW",
    "HaltingExit",
    "HaltingLoss",
    "ema_decay",
    "ema_update_",
    "fused_step_",
    "grad_norm",
    "halting_exit",
    "halting_loss",
]
