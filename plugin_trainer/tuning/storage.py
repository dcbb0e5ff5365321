"""Optuna's database: opened, and what goes wrong with it told in a line that holds no password."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import MissingExtra, StudyError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

HEARTBEAT_SECONDS = 60
"""How often a worker gives a sign of life, unless its study says."""

_SQLITE_WAIT_SECONDS = 60
"""How long a writer waits for another: SQLite has one at a time."""

_MADE_MEANWHILE = re.compile("already exists|UNIQUE|duplicate key", re.IGNORECASE)
"""What a database says to the second of two processes that make its tables at once."""

_AGAIN_AFTER_SECONDS = (0.1, 0.3, 1.0, 3.0)

_PASSWORD = re.compile(r"(?P<before>://[^/@\s]*?:)(?P<secret>[^/@\s][^@\s]*)(?=@)")
_SECRET_ARGUMENT = re.compile(
    r"(?P<before>[?&][^=&\s]*(?:pass|secret|token|key)[^=&\s]*=)(?P<secret>[^&\s]+)", re.IGNORECASE
)


def import_optuna() -> Any:
    """Optuna, quiet. Raises MissingExtra without it."""
    if find_spec("optuna") is None:
        raise MissingExtra(
            "ptrain tune and ptrain study need Optuna, which is not installed",
            hint="pip install 'plugin-trainer[tune]'",
        )
    import optuna

    # It tells every trial in lines of its own; what users are to see is told by us.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file}"


def without_password(url: str) -> str:
    """A URL as it may be shown and written down."""
    hidden = _PASSWORD.sub(r"\g<before>***", url)
    return _SECRET_ARGUMENT.sub(r"\g<before>***", hidden)


def open_storage(
    url: str, *, heartbeat_seconds: int = HEARTBEAT_SECONDS, again: bool = False
) -> BaseStorage:
    """The database under an Optuna URL; its tables are made if it has none.

    heartbeat_seconds  how often its users give signs of life; twice that is how long one may be
                       silent
    again              it was open a moment ago, so that its version is right: saves 25 ms

    Raises StudyError if it cannot be reached, and MissingExtra without Optuna.
    """
    optuna = import_optuna()
    from optuna.exceptions import ExperimentalWarning

    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": _SQLITE_WAIT_SECONDS}
    else:
        options["pool_pre_ping"] = True  # a server may have closed what stood idle for hours
    with told_shortly(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        make = partial(
            optuna.storages.RDBStorage,
            url,
            skip_compatibility_check=again,
            engine_kwargs=options,
            heartbeat_interval=heartbeat_seconds,
            grace_period=2 * heartbeat_seconds,
        )
        try:
            storage = _without_a_race(make)
        except ImportError as error:
            raise StudyError(
                f"the database {without_password(url)} needs a package that is not installed",
                hint=_first_line(error.__cause__ or error, url),
            ) from None
        except RuntimeError as error:  # its tables are not what this Optuna makes
            raise StudyError(
                f"the database {without_password(url)} is of another version of Optuna",
                hint=_first_line(error, url),
            ) from None
        return optuna.storages.get_storage(storage)  # type: ignore[no-any-return]


def _without_a_race(make: Callable[[], Any]) -> Any:
    """What is made, though other processes may be making the same tables at this moment."""
    from sqlalchemy.exc import SQLAlchemyError

    for seconds in _AGAIN_AFTER_SECONDS:
        try:
            return make()
        except SQLAlchemyError as error:
            if not _MADE_MEANWHILE.search(str(error)):
                raise
            time.sleep(seconds)
    return make()


@contextmanager
def told_shortly(url: str) -> Iterator[None]:
    """Turn what a database raises into a StudyError of a few lines without a password."""
    import_optuna()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = without_password(url)
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise StudyError(
            f"'{shown}' is not the URL of a database",
            hint=[
                _first_line(error, url),
                "write one such as sqlite:///study.db or postgresql://user@host/name",
            ],
        ) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise StudyError(
            f"the database {shown} cannot be used", hint=_first_line(cause or error, url)
        ) from None


def is_of_the_database(error: BaseException) -> bool:
    """Whether the database, or the way to it, raised an error."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, (SQLAlchemyError, StorageInternalError))


def _first_line(error: BaseException, url: str) -> str:
    """What the driver says, without SQLAlchemy's frame around it and without secrets."""
    said = getattr(error, "orig", None) or error
    line = next(iter(str(said).strip().splitlines()), "") or type(said).__name__
    for pattern in (_PASSWORD, _SECRET_ARGUMENT):
        for match in pattern.finditer(url):
            line = line.replace(match["secret"], "***")
    return without_password(line)


def study_names(storage: BaseStorage) -> list[str]:
    """The names of all of Optuna's studies in a database."""
    optuna = import_optuna()
    names: list[str] = optuna.get_all_study_names(storage)
    return names


def find_optuna_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """Optuna's study of this name; None if there is none."""
    module = import_optuna()
    try:
        study: optuna.Study = module.load_study(
            study_name=name, storage=storage, pruner=module.pruners.NopPruner()
        )
    except KeyError:
        return None
    return study
