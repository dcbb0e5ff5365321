"""Mirror a run folder in one MLflow run: settings, metrics, files, and how it ended.

What is sent comes from the folder's own files. So whatever did not arrive, for the store was away
or the process was killed, can be sent later from there.
"""

from __future__ import annotations

import re
import socket
import threading
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.files import read_json
from plugin_trainer.settings.render import flatten
from ptrain_mlflow import store
from ptrain_mlflow.history import Difference, History, read_history
from ptrain_mlflow.log_file import Line, read_lines
from ptrain_mlflow.mlflow_run import find_or_make
from ptrain_mlflow.naming import TAG_LENGTH, cut, name_for, parameter, without_password
from ptrain_mlflow.record import read_record
from ptrain_mlflow.settings import LoggerSettings

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# What MLflow takes in one request.
_METRICS_AT_ONCE = 1000
_PARAMETERS_AT_ONCE = 100


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    mlflow_status  "FINISHED", "FAILED" or "KILLED"
    status         in the trainer's word: "stopped early"
    about          what run.json says of the run, or will say
    """

    mlflow_status: str
    status: str
    reason: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class _Opened:
    """The MLflow run, and what is known of it."""

    client: MlflowClient
    run: Run
    experiment: str
    history: History
    is_ours: bool

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)


class Mirror:
    """One run folder and its MLflow run, which is found or made at the first `send` or `close`.

    resumed_from  the step that the run goes on from; None for a run that has ended
    active_run    the id of the MLflow run that was active in the process; empty for none
    uri           the store, once it is chosen
    notes         what the user should know of, in words

    `send` and `close` may take long, and raise what the store raises, or Mistake. Threads take
    turns.
    """

    def __init__(
        self,
        folder: Path,
        settings: LoggerSettings,
        *,
        resumed_from: int | None,
        active_run: str = "",
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.resumed_from = resumed_from
        self.active_run = active_run
        self.uri = ""
        self.notes: list[str] = []
        self._opened: _Opened | None = None
        self._sent = 0  # bytes of the log
        self._turn = threading.Lock()

    def send(self, *, until: int | None = None) -> None:
        """Send what the log holds and the store does not, up to a byte of it."""
        with self._turn, store.quiet():
            self._send(self._open(), until)

    def close(self, ending: Ending, *, until: int | None = None) -> None:
        """Send the rest and the files, and close the MLflow run unless it is somebody else's."""
        with self._turn, store.quiet():
            to = self._open()
            self._send(to, until)
            tags = {"status": ending.status, "reason": ending.reason}
            if self.differing:
                count, first = len(self.differing), self.differing[0]
                tags["differing"] = f"{count} numbers of this run's log, first {first}"
            _tag(to.client, to.id, tags)
            try:
                self._send_files(to, ending)
            finally:
                if to.is_ours:
                    to.client.set_terminated(to.id, ending.mlflow_status)

    # ------------------------------------------------------------------------ what is known of it

    @property
    def place(self) -> tuple[str, ...]:
        """Where the MLflow run is, in lines: its names and id, and the store or its page there."""
        uri = without_password(self.uri)
        if self._opened is None:
            return (f"in {uri}",)
        info = self._opened.run.info
        names = f"experiment {self._opened.experiment}, run {info.run_name} ({info.run_id})"
        page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        return names, page if uri.startswith("http") else f"in {uri}"

    @property
    def differing(self) -> Sequence[Difference]:
        """What MLflow keeps and the log has otherwise since."""
        return tuple(self._opened.history.differing.values()) if self._opened is not None else ()

    @property
    def unsent(self) -> int:
        """How many lines of the log have not been sent."""
        return sum(1 for _ in read_lines(self.folder, start=self._sent))

    # ------------------------------------------------------------------------------- the MLflow run

    def _open(self) -> _Opened:
        """Find or make the MLflow run, and bring its settings up to date."""
        if self._opened is not None:
            return self._opened
        record = read_record(self.folder)
        recorded = record.tracking_uri if record is not None else ""
        self.uri = store.choose_uri(self.settings.tracking_uri, recorded=recorded)
        client = store.connect(self.uri)
        found = find_or_make(
            client, self.folder, self.settings, uri=self.uri, active_run=self.active_run
        )
        run = found.run
        history = read_history(client, run, resumed_from=self.resumed_from)
        if found.note:
            self._note(found.note)
        self._send_settings(client, run)
        self._send_tags(client, run, history, token=found.token)
        if run.info.status != "RUNNING" and found.is_ours:
            client.update_run(run.info.run_id, status="RUNNING")
        experiment = client.get_experiment(run.info.experiment_id).name
        self._opened = _Opened(client, run, experiment, history, found.is_ours)
        return self._opened

    def _send_settings(self, client: MlflowClient, run: Run) -> None:
        """Send those that MLflow does not have. It keeps the first value of each."""
        from mlflow.entities import Param

        new = [
            Param(key, value)
            for key, value in _settings_of(self.folder).items()
            if key not in run.data.params
        ]
        for some in _pieces(new, _PARAMETERS_AT_ONCE):
            client.log_batch(run.info.run_id, params=some)

    def _send_tags(self, client: MlflowClient, run: Run, history: History, *, token: str) -> None:
        """Say where the run is made and, if it was logged before, what has become of that."""
        tags = {
            "id": token,
            "folder": str(self.folder.absolute()),
            "host": socket.gethostname(),
            "status": "running",
            "reason": "",
        }
        known = run.data.params
        since = f"from step {self.resumed_from}" if self.resumed_from else ""
        if since and known:
            resumed = since
            if stands := history.steps_behind:
                resumed = f"{since}; {stands} as logged before"
                self._note(f"going on {resumed}")
            tags["resumed"] = _on_top(resumed, run.data.tags.get("ptrain.resumed"))
        settings = _settings_of(self.folder)
        if changed := [
            f"{key}: {known[key]} -> {value}"
            for key, value in settings.items()
            if key in known and known[key] != value
        ]:
            text = ": ".join(filter(None, (since, "; ".join(changed))))
            tags["changed"] = _on_top(text, run.data.tags.get("ptrain.changed"))
        _tag(client, run.info.run_id, tags, others=self.settings.tags)

    def _note(self, text: str) -> None:
        if text not in self.notes:  # an attempt to open may be the second one
            self.notes.append(text)

    # -------------------------------------------------------------------------- metrics and files

    def _send(self, to: _Opened, until: int | None) -> None:
        for lines in _batches(read_lines(self.folder, start=self._sent, until=until)):
            metrics = to.history.new_metrics(lines)
            for some in _pieces(metrics, _METRICS_AT_ONCE):
                to.client.log_batch(to.id, metrics=some)
            to.history.arrived(metrics)
            self._sent = lines[-1].end

    def _send_files(self, to: _Opened, ending: Ending) -> None:
        """The run's settings and record, what callbacks added and, if asked, the best checkpoint,
        as in the run folder.
        """
        to.client.log_artifact(to.id, str(self.folder / "run.toml"))
        to.client.log_dict(to.id, dict(ending.about), "run.json")
        if (self.folder / "artifacts").is_dir():
            to.client.log_artifacts(to.id, str(self.folder / "artifacts"), "artifacts")
        if not self.settings.best_checkpoint or ending.mlflow_status != "FINISHED":
            return
        checkpoints, assets = self.folder / "checkpoints", self.folder / "assets"
        best = read_json(checkpoints / "best.json")
        if best is None:
            self._note("there is no best checkpoint to send: nothing was evaluated")
            return
        name = best["checkpoint"]
        to.client.log_artifacts(to.id, str(checkpoints / name), f"checkpoints/{name}")
        to.client.log_artifact(to.id, str(checkpoints / "best.json"), "checkpoints")
        if assets.is_dir():
            to.client.log_artifacts(to.id, str(assets), "assets")


def _tag(
    client: MlflowClient,
    run_id: str,
    tags: Mapping[str, str],
    *,
    others: Mapping[str, str] | None = None,
) -> None:
    """Set tags of this plugin's and others."""
    from mlflow.entities import RunTag

    every = {**{f"ptrain.{key}": value for key, value in tags.items()}, **(others or {})}
    client.log_batch(
        run_id, tags=[RunTag(key, cut(text, TAG_LENGTH)) for key, text in every.items()]
    )


def _on_top(text: str, before: str | None) -> str:
    """A tag's text over what it was: the newest is never cut off."""
    return "\n".join(filter(None, (text, before)))


def _settings_of(folder: Path) -> dict[str, str]:
    """The run's settings, flat, as MLflow's parameters."""
    values = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    # Without TOML's quotes, which MLflow refuses: callback_settings."mlflow/logger".send. A dot in
    # quotes does not separate keys, so there they stay.
    flat = {re.sub(r'"([^".]*)"', r"\1", key): value for key, value in flatten(values).items()}
    return {name_for(key): parameter(value) for key, value in flat.items()}


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines together, as many as fit into one request; one that fits into none stands alone."""
    batch: list[Line] = []
    count = 0
    for line in lines:
        if batch and count + len(line.metrics) > _METRICS_AT_ONCE:
            yield batch
            batch, count = [], 0
        batch.append(line)
        count += len(line.metrics)
    if batch:
        yield batch


def _pieces(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
