"""At the end of a run, calibrate its exits on the validation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugin_trainer import load_run
from plugin_trainer.callbacks.settings import EarlyExitSettings
from plugin_trainer.early_exit.calibrate import calibrate, report
from plugin_trainer.early_exit.choice import tasks_with_exits


class EarlyExit:
    """The callback: what `ptrain calibrate RUN` does, for the run that has just ended."""

    def __init__(self, settings: EarlyExitSettings) -> None:
        self.settings = settings

    def ptrain_run_start(self, run: Any) -> None:
        """Refuse a model without exits before it is trained. Raises PtrainError."""
        tasks_with_exits(run.model)

    def ptrain_run_end(self, run: Any, result: Any) -> None:
        """Calibrate the weights that `ptrain evaluate` and `ptrain predict` would use."""
        if run.is_dry or result.status == "interrupted":
            return
        if run.data.validation() is None:
            return
        try:
            loaded = load_run(Path(run.folder), device=str(run.device), trust=True)
            outcomes = calibrate(
                loaded,
                promises=self.settings.max_disagreement,
                confidence=self.settings.confidence,
            )
        except Exception as error:  # whatever it is, a run that has been trained is not lost for it
            run.report("early exit", f"not calibrated: {str(error).splitlines()[0]}")
            return
        for task, outcome in outcomes.items():
            title = f"early exit, {task}" if task else "early exit"
            run.report(title, "\n".join(report(outcome)))
