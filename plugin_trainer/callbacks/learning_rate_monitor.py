"""Add the learning rate to each log line."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from plugin_trainer.callbacks.settings import LearningRateMonitorSettings

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


class LearningRateMonitor:
    """Logs the rate of the next step: `learning_rate`, or one per group, `learning_rate/<pattern>`,
    where groups differ.
    """

    def __init__(self, settings: LearningRateMonitorSettings) -> None:
        del settings

    def ptrain_log(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Add the rates."""
        groups = run.optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        if len(set(rates)) == 1:
            metrics["learning_rate"] = rates[0]
        else:
            pairs = list(zip(groups, rates, strict=True))
            named = {(group.get("name", ""), rate) for group, rate in pairs}
            # Groups of one name differ in weight decay alone, unless someone has changed them.
            by_name = len(dict(named)) == len(named)
            for index, (group, rate) in enumerate(pairs):
                name = group["name"] if by_name and "name" in group else index
                metrics[f"learning_rate/{name}"] = rate
