"""Stop a run whose evaluations no longer improve, or leave the bounds that were set."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from plugin_trainer.callbacks.settings import EarlyStoppingSettings
from plugin_trainer.quoting import counted
from plugin_trainer.watching import is_better, watched

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run


def _is_of_test(name: str) -> bool:
    return name.partition("/")[0] in ("test", "test_ema")


class EarlyStopping:
    """Counts evaluations in a row that did not improve by more than min_delta; stops at `patience`.

    The first finite value is the first best. A value that is not finite is no improvement.
    """

    def __init__(self, settings: EarlyStoppingSettings) -> None:
        self.settings = settings
        self._key = f"early_stopping/{settings.watch}"  # a run may watch several metrics
        self.best: float | None = None
        self.without_improvement = 0

    def ptrain_run_start(self, run: Run) -> None:
        """Begin anew in a run that begins: this object may have served another."""
        run.watch(self.settings.watch, setting="early_stopping.watch")
        if run.progress.step == 0:
            self.best, self.without_improvement = None, 0

    def ptrain_evaluation_end(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Count this evaluation, and stop the run if it was one too many."""
        if not run.world.is_first:
            return  # what another callback has added is this process's own: the first decides
        settings = self.settings
        if settings.watch not in metrics and any(_is_of_test(name) for name in metrics):
            return  # the test split is scored when the run has ended
        value = float(watched(metrics, settings.watch, setting="early_stopping.watch"))
        for name, beyond in (("lower_bound", "below"), ("upper_bound", "above")):
            bound = getattr(settings, name)
            if bound is not None and (value < bound if beyond == "below" else value > bound):
                run.request_stop(f"{settings.watch} is {value:.6g}, {beyond} {name} {bound:.6g}")
        if math.isfinite(value) and (
            self.best is None
            or is_better(value, self.best, settings.mode, min_delta=settings.min_delta)
        ):
            self.best = value
            self.without_improvement = 0
            return
        self.without_improvement += 1
        if self.without_improvement >= settings.patience:
            best = "no finite value yet" if self.best is None else f"best {self.best:.6g}"
            count = counted(self.without_improvement, "evaluation")
            run.request_stop(f"{settings.watch} has not improved for {count} ({best})")

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Give the model its best weights back, if that was asked for."""
        if self.settings.restore_best and "raw" in result.best and result.status != "interrupted":
            run.load_best()

    def ptrain_checkpoint_save(self, state: MutableMapping[str, Any]) -> None:
        """Keep the count and the best."""
        state[self._key] = {"best": self.best, "without_improvement": self.without_improvement}

    def ptrain_checkpoint_load(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        if self._key in state:
            self.best = state[self._key]["best"]
            self.without_improvement = state[self._key]["without_improvement"]
