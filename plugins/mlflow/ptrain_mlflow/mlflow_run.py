"""Find the MLflow run that a run folder belongs to, or make it."""

from __future__ import annotations

import getpass
import time
from calendar import timegm
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plugin_trainer.files import read_json
from ptrain_mlflow import store
from ptrain_mlflow.naming import without_password
from ptrain_mlflow.record import Record, new_record, read_record, write_record
from ptrain_mlflow.settings import LoggerSettings

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Found:
    """An MLflow run.

    is_ours  whether to open and close it; one that is active in the process is its starter's
    token    the tag `ptrain.id`, by which a run folder knows it again
    note     what the user should know of how it was found
    """

    run: Run
    is_ours: bool
    token: str
    note: str = ""


def find_or_make(
    client: MlflowClient, folder: Path, settings: LoggerSettings, *, uri: str, active_run: str
) -> Found:
    """The MLflow run that the folder was logged to before, else the active one, else a new one.

    Writes down which it is, before and after it is made. Raises Mistake for an experiment that
    cannot be used, and what the store raises.
    """
    record, run, note = read_record(folder), None, ""
    experiment = store.choose_experiment(settings.experiment)
    if record is None or record.tracking_uri != without_password(uri):
        record = new_record(folder, tracking_uri=without_password(uri))
        write_record(folder, record)
    elif record.run_id:
        run = _still_there(client, record.run_id)
        if run is None:
            note = f"the MLflow run {record.run_id} was deleted: another has the whole log"
    else:  # whether it was made before the process was killed, nobody heard
        number = store.experiment_id(client, experiment, uri=uri)
        found = client.search_runs([number], f"tags.`ptrain.id` = '{record.token}'")
        run = found[0] if found else None
    if run is None and active_run and settings.active_run == "join":
        run, note = _joined(client, active_run)
    if run is None:
        number = store.experiment_id(client, experiment, uri=uri)
        parent = active_run if settings.active_run == "nest" else ""
        run = _made(client, folder, settings, record, experiment=number, parent=parent)
    write_record(folder, record.known_as(run.info.run_id))
    return Found(run, run.info.run_id != active_run, record.token, note)


def _still_there(client: MlflowClient, run_id: str) -> Run | None:
    mlflow = store.imported()
    try:
        run = client.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if run.info.lifecycle_stage == "deleted" else run


def _joined(client: MlflowClient, active_run: str) -> tuple[Run | None, str]:
    """The active run, unless another run folder is logged to it."""
    run = client.get_run(active_run)
    if "ptrain.id" not in run.data.tags:
        return run, ""
    holds = run.data.tags.get("ptrain.folder")
    return None, f"the active MLflow run holds {holds} already: this run has its own"


def _made(
    client: MlflowClient,
    folder: Path,
    settings: LoggerSettings,
    record: Record,
    *,
    experiment: str,
    parent: str,
) -> Run:
    about = read_json(folder / "run.json") or {}
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(about.get("command", [""])[0]).name,
        "mlflow.source.type": "LOCAL",
        "ptrain.id": record.token,
    }
    if about.get("git"):
        tags["mlflow.source.git.commit"] = about["git"]["commit"]
    if parent:
        tags["mlflow.parentRunId"] = parent
    return client.create_run(
        experiment,
        start_time=_milliseconds(about.get("started")),
        tags=tags,
        run_name=settings.run_name or folder.absolute().name,
    )


def _milliseconds(moment: str | None) -> int:
    if not moment:
        return int(1000 * time.time())
    return 1000 * timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
