"""Remember in a run's folder which MLflow run it is logged to: `mlflow.json`."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from plugin_trainer.files import read_json, write_json

FILE = "mlflow.json"


@dataclass(frozen=True)
class Record:
    """Where a run is logged.

    token         made before the MLflow run is, and a tag of it: by this it is found again if
                  nobody heard that it was made
    run_id        empty until the MLflow run is known to exist
    tracking_uri  the store, without a password
    folder        the run folder, to tell a copy of it from the one that was moved
    """

    token: str
    tracking_uri: str
    folder: str
    run_id: str = ""

    def known_as(self, run_id: str) -> Record:
        """The same with the MLflow run's id."""
        return replace(self, run_id=run_id)


def read_record(folder: Path) -> Record | None:
    """The record of a run folder; None if it has none, or is a copy of the folder that made it."""
    values = read_json(folder / FILE)
    try:
        record = Record(**values)
    except TypeError:
        return None
    first = Path(record.folder)
    if first.absolute() != folder.absolute() and read_json(first / FILE) == values:
        return None
    return record


def write_record(folder: Path, record: Record) -> None:
    """Replace the record."""
    write_json(folder / FILE, asdict(record))


def new_record(folder: Path, *, tracking_uri: str) -> Record:
    """The record of a run that is about to be logged."""
    return Record(token=uuid.uuid4().hex, tracking_uri=tracking_uri, folder=str(folder.absolute()))
