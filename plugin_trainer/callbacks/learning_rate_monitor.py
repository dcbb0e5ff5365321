"""Add the learning rate to each log line."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from plugin_trainer.callbacks.settings import LearningRateMonitorSettings

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


class LearningRateMonitor:
    """Logs the rate of the next step: `learning_rate`, or one per group where groups differ."""

    def __init__(self, settings: LearningRateMonitorSettings) -> None:
        del settings

    def ptrain_log(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Add the rates."""
        rates = [float(group["lr"]) for group in run.optimizer.param_groups]
        if len(set(rates)) == 1:
            metrics["learning_rate"] = rates[0]
        else:
            metrics.update({f"learning_rate/{index}": rate for index, rate in enumerate(rates)})
