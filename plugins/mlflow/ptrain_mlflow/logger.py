"""Log a run to MLflow: the callback."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from plugin_trainer.errors import MissingExtra, PtrainError
from plugin_trainer.files import read_json
from plugin_trainer.registry.blame import in_words as error_in_words
from ptrain_mlflow import store
from ptrain_mlflow.background import Repeated, within
from ptrain_mlflow.log_file import size_of
from ptrain_mlflow.mirror import Ending, Mirror
from ptrain_mlflow.naming import without_password
from ptrain_mlflow.settings import LoggerSettings

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run

# How long training waits for the store: at its start (to make a database takes 1 s, and 7 s on a
# busy machine), at its end, at its end with a checkpoint to send, and when a second signal wants
# the process gone.
_START_S = 30.0
_END_S = 30.0
_UPLOAD_S = 600.0
_LEAVING_S = 2.0

_STATUS = {"finished": "FINISHED", "stopped early": "FINISHED", "interrupted": "KILLED"}


class MlflowLogger:
    """One MLflow run for a run: its settings, every logged number at its optimizer step, its files.

    A thread sends what is new in metrics.jsonl every `send_every_s`. Training waits for it when it
    starts and when it ends, 30 seconds at most. A store that cannot be reached is said once
    and tried again; what it missed is sent when it answers, at the latest when the run is resumed
    or by `ptrain mlflow RUN`.

    Raises MissingExtra if MLflow is not installed, and PtrainError before the first step for what
    only the user can mend, such as a URI that is none.
    """

    def __init__(self, settings: LoggerSettings) -> None:
        if not store.is_installed():
            raise MissingExtra(
                "the callback 'mlflow/logger' needs the packages mlflow, sqlalchemy and alembic",
                hint="install them: pip install mlflow-skinny sqlalchemy alembic",
            )
        self._settings = settings
        self._mirror: Mirror | None = None
        self._repeated: Repeated | None = None
        self._environment = ExitStack()
        self._until: int | None = None  # the byte of the log behind which nothing may be sent yet
        self._written = 0
        self._mistake = ""
        self._trouble = ""
        self._said = False

    # ------------------------------------------------------------------------------------- hooks

    def ptrain_run_start(self, run: Run) -> None:
        """Find or make the MLflow run, and begin to send."""
        if run.is_dry:
            return
        self._environment.enter_context(store.environment(store.METRICS))
        active_run = self._active_run()
        self._mirror = Mirror(
            run.folder, self._settings, resumed_from=run.progress.step, active_run=active_run
        )
        if self._settings.send == "saved":
            self._until = size_of(run.folder)  # cut back to the checkpoint that it goes on from
        if not within(_START_S, self._send):
            self._trouble = f"no answer in {_START_S:.0f} s"
        if self._mistake:
            self._mirror = None
            raise PtrainError(
                f"mlflow: {self._mistake}",
                hint='[callback_settings."mlflow/logger"] tracking_uri is sqlite:///FILE, or the '
                "http:// address of a server; see: ptrain plugins show mlflow",
            )
        for note in self._mirror.notes:
            _say(note)
        self._say_trouble()
        self._repeated = Repeated(self._send, every_s=self._settings.send_every_s)
        self._repeated.start()

    def ptrain_log(self) -> None:
        """Tell of trouble, here where no step is under way."""
        self._say_trouble()

    def ptrain_checkpoint_save(self, run: Run) -> None:
        """Note how much of the log the checkpoint holds."""
        self._written = size_of(run.folder)

    def ptrain_checkpoint_committed(self) -> None:
        """Let that much be sent, if that is what sending waits for."""
        if self._until is not None:
            self._until = self._written

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Send the rest, close the MLflow run, and report where it is."""
        if result.status != "interrupted":
            self._until = None  # nothing goes back behind an end
        self._finish(run, _STATUS[result.status], result.record(), wait_s=_END_S)
        if self._mirror is not None:
            self._say_it_is_back()
            run.report("mlflow", self._report())

    def ptrain_run_failed(self, run: Run, error: BaseException) -> None:
        """Send the rest and close the MLflow run as failed, or killed by Ctrl-C."""
        status = "FAILED" if isinstance(error, Exception) and not run.leaving else "KILLED"
        ending = {"status": "failed", "reason": error_in_words(error), "step": run.progress.step}
        self._finish(run, status, ending, wait_s=_LEAVING_S if run.leaving else _END_S)
        if self._trouble and self._mirror is not None:
            for line in self._report().splitlines():
                _say(line)

    # -------------------------------------------------------------------------------- in a thread

    def _send(self) -> bool:
        """Send what is new; whether it went well."""
        assert self._mirror is not None
        try:
            self._mirror.send(until=self._until)
        except store.Mistake as mistake:
            self._mistake = self._trouble = str(mistake)
        except Exception as error:  # a log is not worth a run, whatever is wrong with it
            self._trouble = store.in_words(error)
        else:
            self._trouble = ""
            return True
        return False

    def _close(self, ending: Ending) -> None:
        assert self._mirror is not None
        try:
            self._mirror.close(ending, until=self._until)
        except Exception as error:
            self._trouble = store.in_words(error)
        else:
            self._trouble = ""

    # --------------------------------------------------------------------------------------------

    def _active_run(self) -> str:
        """The id of the run that is active in this thread, if it is in the store chosen here."""
        mlflow = store.imported()
        active = mlflow.active_run() if self._settings.active_run != "ignore" else None
        if active is None:
            return ""
        elsewhere = self._settings.tracking_uri not in ("", mlflow.get_tracking_uri())
        return "" if elsewhere else str(active.info.run_id)

    def _finish(self, run: Run, status: str, ending: Mapping[str, Any], *, wait_s: float) -> None:
        """Close the MLflow run, for which training waits so long and no longer."""
        if self._mirror is None:
            self._environment.close()
            return
        if self._repeated is not None:
            self._repeated.stop()
        about = {**(read_json(run.folder / "run.json") or {}), **ending}
        how = Ending(status, str(ending["status"]), str(ending["reason"]), about)
        if self._settings.best_checkpoint and status == "FINISHED":
            wait_s = _UPLOAD_S
        # Over that of metrics, in whose place MLflow's own patience must not stand for a moment: a
        # request that begins then is tried for minutes, and the end waits for it.
        with self._environment, store.environment(store.FILES):
            if not within(wait_s, partial(self._close, how)):
                self._trouble = f"no answer in {wait_s:.0f} s"

    def _say_trouble(self) -> None:
        """Say that the store is lost, once, and that it is back."""
        if self._trouble and not self._said:
            self._said = True
            _say(f"cannot log to {self._where()}: {self._trouble}")
            _say("training goes on; what it misses is sent later, from metrics.jsonl")
        self._say_it_is_back()

    def _say_it_is_back(self) -> None:
        if self._said and not self._trouble:
            self._said = False
            _say(f"{self._where()} answers again; nothing is missing there")

    def _where(self) -> str:
        assert self._mirror is not None
        return without_password(self._mirror.uri or self._settings.tracking_uri or store.EMBEDDED)

    def _report(self) -> str:
        """What a user wants to know of it at the end."""
        mirror = self._mirror
        assert mirror is not None
        lines = [*mirror.place]
        if self._trouble:
            unsent = mirror.unsent
            missing = f"{unsent} lines of metrics.jsonl" if unsent else "the run's end"
            lines += [
                f"not complete, {missing} could not be sent: {self._trouble}",
                f"to send it: ptrain mlflow {mirror.folder}",
            ]
        if mirror.differing:
            lines += [f"{len(mirror.differing)} numbers differ from what was logged before:"]
            lines += [f"  {difference}" for difference in mirror.differing[:3]]
        return "\n".join(lines)


def _say(text: str) -> None:
    # Above a progress bar, if one is drawn; what nobody can read must not end a run.
    with suppress(OSError):
        tqdm.write(f"mlflow: {text}", file=sys.stderr)
