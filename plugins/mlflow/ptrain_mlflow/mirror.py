"""Mirror a run folder in one MLflow run: settings, metrics, files, and how it ended.

What is sent comes from the folder's own files, so that whatever did not arrive, for the store was
away or the process was killed, can be sent later from there.

MLflow never forgets a metric and cannot replace one. So of each metric only the steps are sent that
the store does not have: a run that was killed at step 80 and goes on from its checkpoint of step 60
makes steps 61 to 80 twice, and they stand in MLflow once, as they were first logged. A resume that
is exact makes the same numbers again; where one does not, the tag `ptrain.differing` says so.
"""

from __future__ import annotations

import getpass
import math
import socket
import threading
import time
import tomllib
from calendar import timegm
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.files import read_json
from plugin_trainer.settings.render import flatten
from ptrain_mlflow import log_file, store
from ptrain_mlflow.log_file import Line, read_lines
from ptrain_mlflow.naming import TAG_LENGTH, cut, name_for, parameter, without_password
from ptrain_mlflow.record import Record, new_record, read_record, write_record
from ptrain_mlflow.settings import LoggerSettings

if TYPE_CHECKING:
    from mlflow.entities import Metric, RunTag
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

# What MLflow takes in one request.
_METRICS_AT_ONCE = 1000
_PARAMETERS_AT_ONCE = 100

# These depend on the clock, so that no resume repeats them.
_TIMED = ("seconds/", "samples_per_second", "tokens_per_second")


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
class Difference:
    """A number that was made again and came out otherwise."""

    name: str
    step: int
    there: float
    here: float

    def __str__(self) -> str:
        return f"{self.name} at step {self.step}: {self.there:.6g} there, {self.here:.6g} here"


class Mirror:
    """One run folder and its MLflow run, which is found or made at the first `send`.

    resumed_from  the step that the run goes on from: what the store has of later steps was logged
                  by a process that did not live to save it. None for a run that has ended
    active_run    the id of the MLflow run that was active in the process; empty for none
    notes         what the user should know of, in words

    Every method may take long and raises what the store raises, or Mistake. Threads take turns.
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
        self.run_id = ""
        self.run_name = ""
        self.experiment = ""
        self.notes: list[str] = []
        self.differing: list[Difference] = []
        self._lock = threading.Lock()
        self._client: Any = None
        self._is_ours = True  # to close; one that was active belongs to who started it
        self._sent = 0  # bytes of the log
        self._last: dict[str, int] = {}  # of each metric, the last step that the store had
        self._told: dict[tuple[str, int], float] = {}  # and each point after `resumed_from`

    @property
    def unsent(self) -> int:
        """How many lines of the log have not been sent."""
        return sum(1 for _ in read_lines(self.folder, start=self._sent))

    def send(self, *, until: int | None = None) -> None:
        """Send what the log holds and the store does not, up to a byte of it."""
        with self._lock, store.quiet():
            self._send(until)

    def close(self, ending: Ending, *, until: int | None = None) -> None:
        """Send the rest and the files, and close the MLflow run unless it is somebody else's."""
        with self._lock, store.quiet():
            self._send(until)
            self._tag({"status": ending.status, "reason": ending.reason, **self._contradictions()})
            try:
                self._send_files(ending)
            finally:
                if self._is_ours:
                    self._client.set_terminated(self.run_id, ending.mlflow_status)

    # ------------------------------------------------------------------------------- metrics

    def _send(self, until: int | None) -> None:
        if not self.run_id:
            self._open()
        for lines in _batches(read_lines(self.folder, start=self._sent, until=until)):
            metrics = [metric for line in lines for metric in self._new_metrics(line)]
            for some in _pieces(metrics, _METRICS_AT_ONCE):
                self._client.log_batch(self.run_id, metrics=some)
            self._sent = lines[-1].end

    def _new_metrics(self, line: Line) -> Iterator[Metric]:
        from mlflow.entities import Metric

        # A line sent twice, for nobody heard that it had arrived, must have the same time: MLflow
        # drops the second then.
        time_s = line.time_s or (self.folder / log_file.FILE).stat().st_mtime
        for name, value in line.metrics.items():
            key = name_for(name)
            if self._is_new(key, line.step, value):
                yield Metric(key, value, int(1000 * time_s), line.step)

    def _is_new(self, key: str, step: int, value: float) -> bool:
        if step > self._last.get(key, -1):
            return True
        if self.resumed_from is None or step <= self.resumed_from:
            return False
        there = self._told.get((key, step))
        if there is None:
            return True
        if not math.isfinite(there):
            return math.isfinite(value)  # what failed the run then has gone well this time
        if there != value and not key.startswith(_TIMED):
            self.differing.append(Difference(key, step, there, value))
        return False

    def _contradictions(self) -> dict[str, str]:
        if not self.differing:
            return {}
        first = self.differing[0]
        return {"differing": f"{len(self.differing)} numbers of this run's log, first {first}"}

    # --------------------------------------------------------------------------- the MLflow run

    def _open(self) -> None:
        """Find or make the MLflow run, and bring its settings up to date."""
        record = read_record(self.folder)
        self.uri = store.choose_uri(
            self.settings.tracking_uri, recorded=record.tracking_uri if record else ""
        )
        self._client = store.connect(self.uri)
        run: MlflowRun | None = None
        if record is not None and record.tracking_uri == without_password(self.uri):
            run = self._found(record)
        else:
            record = new_record(self.folder, tracking_uri=without_password(self.uri))
            write_record(self.folder, record)
        run = run or self._joined() or self._made(record)
        write_record(self.folder, record.known_as(run.info.run_id))
        self._look_at_metrics(run)
        self._bring_up_to_date(run, record)
        self.run_name = run.info.run_name
        self.experiment = self._client.get_experiment(run.info.experiment_id).name
        self.run_id = run.info.run_id

    def _found(self, record: Record) -> MlflowRun | None:
        """The MLflow run that the folder was logged to before, if it is still there."""
        if not record.run_id:
            return self._made_unheard(record)
        mlflow = store.imported()
        try:
            run: MlflowRun | None = self._client.get_run(record.run_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            self._note(f"the MLflow run {record.run_id} was deleted: another has the whole log")
            return None
        self._is_ours = run.info.run_id != self.active_run
        return run

    def _made_unheard(self, record: Record) -> MlflowRun | None:
        """The MLflow run that was made although the answer never came."""
        experiment = self._experiment_id()
        found = self._client.search_runs([experiment], f"tags.`ptrain.id` = '{record.token}'")
        return found[0] if found else None

    def _joined(self) -> MlflowRun | None:
        """The run that is active in the process, if it is to be logged to and is still free."""
        if not self.active_run or self.settings.active_run != "join":
            return None
        run: MlflowRun = self._client.get_run(self.active_run)
        if "ptrain.id" in run.data.tags:
            holds = run.data.tags.get("ptrain.folder")
            self._note(f"the active MLflow run holds {holds} already: this run has its own")
            return None
        self._is_ours = False
        return run

    def _made(self, record: Record) -> MlflowRun:
        about = read_json(self.folder / "run.json") or {}
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": " ".join(
                Path(word).name for word in about.get("command", [])[:1]
            ),
            "mlflow.source.type": "LOCAL",
            "ptrain.id": record.token,
        }
        if about.get("git"):
            tags["mlflow.source.git.commit"] = about["git"]["commit"]
        if self.active_run and self.settings.active_run == "nest":
            tags["mlflow.parentRunId"] = self.active_run
        run: MlflowRun = self._client.create_run(
            self._experiment_id(),
            start_time=_milliseconds(about.get("started")),
            tags=tags,
            run_name=self.settings.run_name or self.folder.absolute().name,
        )
        return run

    def _experiment_id(self) -> str:
        name = store.choose_experiment(self.settings.experiment)
        return store.experiment_id(self._client, name, uri=self.uri)

    def _look_at_metrics(self, run: MlflowRun) -> None:
        """Learn what the store has already."""
        self._last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if self.resumed_from is None:
            return
        self._told = {
            (metric.key, metric.step): metric.value
            for key, step in self._last.items()
            if step > self.resumed_from
            for metric in self._client.get_metric_history(run.info.run_id, key)
            if metric.step > self.resumed_from
        }

    def _bring_up_to_date(self, run: MlflowRun, record: Record) -> None:
        """Send the settings, and say what has changed since the run was first logged."""
        from mlflow.entities import Param

        settings = _settings_of(self.folder)
        known = run.data.params
        new = [Param(key, value) for key, value in settings.items() if key not in known]
        for some in _pieces(new, _PARAMETERS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=some)
        tags = {
            "id": record.token,
            "folder": str(self.folder.absolute()),
            "host": socket.gethostname(),
            "status": "running",
            "reason": "",
        }
        if self.resumed_from and known:
            tags["resumed"] = _added(run, "resumed", self._resumed_in_words())
        if changed := [
            f"{key}: {known[key]} -> {value}"
            for key, value in settings.items()
            if key in known and known[key] != value
        ]:
            since = f"from step {self.resumed_from}: " if self.resumed_from else ""
            tags["changed"] = _added(run, "changed", since + "; ".join(changed))
        self._tag(tags, run_id=run.info.run_id, others=self.settings.tags)
        if run.info.status != "RUNNING" and self._is_ours:
            self._client.update_run(run.info.run_id, status="RUNNING")

    def _resumed_in_words(self) -> str:
        since = f"from step {self.resumed_from}"
        steps = sorted({step for _, step in self._told})
        if not steps:
            return since
        text = f"{since}; steps {steps[0]} to {steps[-1]} stand as they were logged before"
        if len(steps) == 1:
            text = f"{since}; step {steps[0]} stands as it was logged before"
        self._note(f"going on {text}")
        return text

    def _tag(
        self, tags: Mapping[str, str], *, run_id: str = "", others: Mapping[str, str] | None = None
    ) -> None:
        from mlflow.entities import RunTag

        every = {**{f"ptrain.{key}": value for key, value in tags.items()}, **(others or {})}
        made: list[RunTag] = [RunTag(key, cut(value, TAG_LENGTH)) for key, value in every.items()]
        self._client.log_batch(run_id or self.run_id, tags=made)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # --------------------------------------------------------------------------------- files

    def _send_files(self, ending: Ending) -> None:
        """The run's settings and record and, if asked, its best checkpoint, as in its folder."""
        client: MlflowClient = self._client
        client.log_artifact(self.run_id, str(self.folder / "run.toml"))
        client.log_dict(self.run_id, dict(ending.about), "run.json")
        if not self.settings.best_checkpoint or ending.mlflow_status != "FINISHED":
            return
        pointer = self.folder / "checkpoints" / "best.json"
        best = read_json(pointer)
        if best is None:
            self._note("there is no best checkpoint to send: nothing was evaluated")
            return
        name = best["checkpoint"]
        client.log_artifacts(
            self.run_id, str(pointer.parent / name), artifact_path=f"checkpoints/{name}"
        )
        client.log_artifact(self.run_id, str(pointer), artifact_path="checkpoints")
        if (self.folder / "assets").is_dir():
            client.log_artifacts(self.run_id, str(self.folder / "assets"), artifact_path="assets")


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


def _settings_of(folder: Path) -> dict[str, str]:
    """The run's settings, flat, as MLflow's parameters."""
    values = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    # Without TOML's quotes, which MLflow refuses: callback_settings."mlflow/logger".send
    flat = {key.replace('"', ""): value for key, value in flatten(values).items()}
    return {name_for(key): parameter(value) for key, value in flat.items()}


def _added(run: MlflowRun, tag: str, text: str) -> str:
    """A tag's text with one more line, the newest first so that it is never cut off."""
    return "\n".join(filter(None, (text, run.data.tags.get(f"ptrain.{tag}"))))


def _milliseconds(moment: str | None) -> int:
    if not moment:
        return int(1000 * time.time())
    return 1000 * timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
