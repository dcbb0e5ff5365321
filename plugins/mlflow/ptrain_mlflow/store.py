"""Reach an MLflow store: which one, in bounded time, quietly, and with no word to anyone else."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ptrain_mlflow.naming import without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EMBEDDED = "sqlite:///mlflow.db"
EXPERIMENT = "ptrain"
ARTIFACTS = "mlartifacts"

_SQLITE = "sqlite:///"
_LOCKED_S = 5.0

# MLflow's own patience is 120 s and 7 retries a request. Here whoever asks comes again anyway, and
# retries would draw their pauses from Python's random numbers, which are the training's.
METRICS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
FILES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Mistake(Exception):
    """What the user must change before this store can be used; it will not mend itself."""


# ------------------------------------------------------------------------------------ which store


def choose_uri(setting: str, *, recorded: str = "") -> str:
    """The setting, else what MLflow itself was told, else the store that the run had, else the
    embedded one; where it names a place on this disk, from any folder.
    """
    mlflow = imported()
    told = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""
    remembered = "" if ":***@" in recorded else recorded
    return _absolute(setting or told or remembered or EMBEDDED)


def _absolute(uri: str) -> str:
    path = sqlite_path(uri)
    return uri if path is None else f"{_SQLITE}{path.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a plain SQLite URI; None for any other store."""
    path = uri.removeprefix(_SQLITE)
    is_plain = uri.startswith(_SQLITE) and "?" not in path and path not in ("", ":memory:")
    return Path(path) if is_plain else None


def choose_experiment(setting: str) -> str:
    """The experiment's name, or an id as "id:3", which mlflow.set_experiment leaves behind."""
    if setting:
        return setting
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or (f"id:{number}" if number else EXPERIMENT)


# --------------------------------------------------------------------------------- talking to it


def imported() -> Any:
    """The package mlflow. It must not call home when it is imported, nor later."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return import_module("mlflow")


def is_installed() -> bool:
    """Whether MLflow and what its SQLite store needs are there; imports none of it."""
    return all(find_spec(name) is not None for name in ("mlflow", "sqlalchemy", "alembic"))


def connect(uri: str) -> MlflowClient:
    """A client of the store. Raises Mistake for a URI that is none, and what the store raises."""
    mlflow = imported()
    if uri.startswith("http") and not urlsplit(uri).hostname:
        raise Mistake(f"'{uri}' names no host; a server is written http://host:5000")
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_database(path)
        with closing(sqlite3.connect(path, timeout=_LOCKED_S)) as database:
            database.execute("PRAGMA schema_version")  # MLflow would try for 100 s
    try:
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri)
    except ModuleNotFoundError as error:
        raise Mistake(f"{without_password(uri)} needs the package {error.name}") from error
    except mlflow.MlflowException as error:
        raise _mistake_in(error) or error from None
    return client


def _make_database(path: Path) -> None:
    """Make a database elsewhere and put it into its place whole, if there is none by then.

    MLflow makes it in some seventy steps in its place. A process that is killed meanwhile, or two
    at once, leave one behind that it can neither use nor mend.
    """
    with TemporaryDirectory(prefix="ptrain-mlflow-") as folder:
        new = Path(folder) / "mlflow.db"
        imported().MlflowClient(tracking_uri=f"{_SQLITE}{new}")
        beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            shutil.copyfile(new, beside)
            try:
                os.link(beside, path)
            except FileExistsError:  # another process was first
                pass
            except OSError:  # a file system without hard links
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def experiment_id(client: MlflowClient, name: str, *, uri: str) -> str:
    """The experiment of that name, made if there is none. Raises Mistake for a bad name."""
    mlflow = imported()
    if name.startswith("id:"):
        return name.removeprefix("id:")
    path = sqlite_path(uri)
    artifacts = None if path is None else (path.parent / ARTIFACTS).as_uri()
    try:
        if (found := client.get_experiment_by_name(name)) is None:
            return str(client.create_experiment(name, artifact_location=artifacts))
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":  # another run has just made it
            found = client.get_experiment_by_name(name)
        if found is None:
            raise _mistake_in(error) or error from None
    if found.lifecycle_stage == "deleted":
        raise Mistake(f"the experiment '{name}' was deleted; restore it, or choose another")
    return str(found.experiment_id)


def _mistake_in(error: Any) -> Mistake | None:
    if error.error_code != "INVALID_PARAMETER_VALUE":
        return None
    return Mistake(str(error).strip().splitlines()[0])


def in_words(error: BaseException) -> str:
    """What went wrong at the bottom of it: MLflow wraps "Connection refused" in five errors."""
    deepest = error
    while (cause := deepest.__cause__ or deepest.__context__) is not None:
        deepest = cause
    if isinstance(deepest, OSError) and deepest.strerror:
        place = f": {deepest.filename}" if deepest.filename else ""
        return f"{deepest.strerror}{place}"
    text = str(deepest).strip().splitlines()
    return text[0][:200] if text else type(deepest).__name__


# ------------------------------------------------------------------------------- in what manner


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that nobody else has set, and put back what was there before."""
    free = [name for name in values if name not in os.environ or name in _ours]
    before = {name: os.environ[name] for name in free if name in os.environ}
    _ours.update(free)
    os.environ.update({name: values[name] for name in free})
    try:
        yield
    finally:
        os.environ.update(before)
        for name in set(free) - before.keys():
            os.environ.pop(name, None)
            _ours.discard(name)


_ours: set[str] = set()


class _Silent(logging.Filter):
    """Drops what threads log that report their errors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let a record pass."""
        return record.thread not in self.threads


_SILENT = _Silent()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep this thread's MLflow off the terminal: it prints tracebacks of what it raises."""
    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_SILENT)  # adding it again changes nothing
    _SILENT.threads.add(threading.get_ident())
    try:
        yield
    finally:
        _SILENT.threads.discard(threading.get_ident())
