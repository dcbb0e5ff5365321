"""Register the best checkpoint of a run in the model store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.model_store.settings import RegisterBestSettings
from plugin_trainer.model_store.store import Registered, Store
from plugin_trainer.run_folder import now

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run

_TITLE = "model store"


class RegisterBest:
    """Registers at the run's end and, if asked, each new best as it is committed.

    A checkpoint is known by its weights, so that a run that is killed and resumed registers none
    twice. An interrupted run registers nothing at its end: it is to be resumed.
    """

    def __init__(self, settings: RegisterBestSettings) -> None:
        self._settings = settings
        self._pointer = "best" if settings.weights == "raw" else "best_ema"
        self._store = Store(settings.store or None)

    def ptrain_run_start(self, run: Run) -> None:
        """Find out now, not hours later, what would keep the best from being registered."""
        if run.is_dry:
            return
        if self._pointer not in run.best:
            needs = "validation data and best.watch"
            if self._settings.weights == "ema":
                needs = "[ema], validation data and best.watch"
            raise PtrainError(
                f"register_best: the run will have no best checkpoint of its "
                f"{self._settings.weights} weights",
                hint=f'it needs {needs}; or take the callback away: "-register_best"',
            )
        self._store.prepare()
        if run.progress.step:
            self._register_new_best(run)  # it may have been killed just before it did

    def ptrain_checkpoint_committed(self, run: Run, path: Path) -> None:
        """Register a new best, if each is to be."""
        pointer = run.store.pointer(self._pointer)
        if pointer is not None and pointer["checkpoint"] == path.name:
            self._register_new_best(run)

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Register the best of the whole run. Raises StoreError if that fails: it was asked for."""
        if result.status == "interrupted" or run.is_dry:
            return
        if run.store.pointer(self._pointer) is None:
            run.report(_TITLE, "nothing was registered: no evaluation was finite")
            return
        try:
            registered = self._register(run, news={**result.record(), "ended": now()})
        except PtrainError as error:
            raise StoreError(
                f"the run is whole, but its best checkpoint was not registered: {error.message}",
                hint=[
                    *error.hint,
                    "once that is mended: "
                    f"ptrain models register {run.folder} --name {self._settings.name}",
                ],
            ) from error
        run.report(_TITLE, str(registered))

    def _register_new_best(self, run: Run) -> None:
        """Training goes on if the store refuses: the end of the run tries once more."""
        if self._settings.when != "best" or run.is_dry:
            return
        if run.store.pointer(self._pointer) is None:
            return
        try:
            self._register(run, news={})
        except PtrainError as error:
            title, line = f"{_TITLE}, missed", f"step {run.progress.step}: {error.message}"
            run.report(title, "\n".join(filter(None, (run.reports.get(title), line))))

    def _register(self, run: Run, *, news: Mapping[str, Any]) -> Registered:
        settings = self._settings
        return self._store.register(
            run.folder,
            name=settings.name,
            checkpoint="best",
            weights=settings.weights,
            aliases=settings.aliases,
            tags=settings.tags,
            once=True,
            news=news,
        )
