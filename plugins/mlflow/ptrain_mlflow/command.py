"""`ptrain mlflow RUN...`: send to MLflow what it does not have of runs that have ended."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plugin_trainer.cli.printing import echo

if TYPE_CHECKING:
    from ptrain_mlflow.mirror import Mirror
    from ptrain_mlflow.settings import LoggerSettings

_STATUS = {"finished": "FINISHED", "stopped early": "FINISHED", "failed": "FAILED"}
_SPELLINGS = ("mlflow/logger", "logger")


@click.command(name="mlflow")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--tracking-uri", default="", help="The store, in place of the run's own.")
@click.option("--experiment", default="", help="The experiment, in place of the run's own.")
def mlflow(runs: tuple[str, ...], tracking_uri: str, experiment: str) -> None:
    """Send runs to MLflow: what their logs hold and the store does not.

    For runs whose store could not be reached, and for those that were not logged to MLflow at all.
    RUN is a run folder or its name.
    """
    from plugin_trainer.run_folder import find_run

    given = {"tracking_uri": tracking_uri, "experiment": experiment}
    for name in runs:
        mirror = send(find_run(name), given={key: value for key, value in given.items() if value})
        echo("\n  ".join((str(mirror.folder), *mirror.place)))
        for note in mirror.notes:
            echo(f"  {note}", err=True)


def send(folder: Path, *, given: Mapping[str, Any]) -> Mirror:
    """Bring a run's MLflow run up to date. Raises PtrainError if it is in training or nobody
    answers.
    """
    from plugin_trainer.errors import PtrainError, RunFolderError
    from plugin_trainer.files import read_json
    from plugin_trainer.run_folder import is_held
    from ptrain_mlflow import store
    from ptrain_mlflow.mirror import Ending, Mirror
    from ptrain_mlflow.naming import without_password

    if is_held(folder):
        raise RunFolderError(f"{folder} is in training", hint="wait for its end")
    settings = replace(settings_of(folder), **given)
    about = read_json(folder / "run.json") or {}
    # A run that is "running" and that no process holds was killed.
    status = _STATUS.get(about.get("status", ""), "KILLED")
    mirror = Mirror(folder, settings, resumed_from=None)
    try:
        with store.environment(store.FILES):
            mirror.close(Ending(status, about.get("status", ""), about.get("reason", ""), about))
    except Exception as error:
        text = str(error) if isinstance(error, store.Mistake) else store.in_words(error)
        place = without_password(mirror.uri)
        raise PtrainError(f"{folder} could not be sent to {place}: {text}") from error
    return mirror


def settings_of(folder: Path) -> LoggerSettings:
    """The callback's settings as the run had them; the defaults if it had none."""
    from pydantic import TypeAdapter

    from ptrain_mlflow.settings import LoggerSettings

    tables = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    given = tables.get("callback_settings", {})
    table: Mapping[str, Any] = next((given[name] for name in _SPELLINGS if name in given), {})
    return TypeAdapter(LoggerSettings).validate_python(table)
