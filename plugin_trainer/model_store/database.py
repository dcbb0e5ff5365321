"""The registry's tables, in one SQLite file that several processes may use at once.

A rollback journal and not a write-ahead log: the log needs memory shared between processes, which
network disks have not, and cannot be read where nothing may be written. Writers take the lock when
they begin, so that none finds at its end that another was faster.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import Connection

from plugin_trainer.model_store.errors import StoreError

_FORMAT = 1
_BUSY_S = 60.0

# `models` outlives its versions: a number that was given once is never given again.
_TABLES = """
    CREATE TABLE models (
        name         TEXT PRIMARY KEY,
        last_number  INTEGER NOT NULL
    );
    CREATE TABLE versions (
        name      TEXT NOT NULL REFERENCES models,
        number    INTEGER NOT NULL,
        created   TEXT NOT NULL,
        run       TEXT NOT NULL,
        step      INTEGER NOT NULL,
        weights   TEXT NOT NULL,
        watch     TEXT NOT NULL,
        mode      TEXT NOT NULL,
        content   TEXT NOT NULL,
        metrics   TEXT NOT NULL,
        settings  TEXT NOT NULL,
        about     TEXT NOT NULL,
        PRIMARY KEY (name, number)
    );
    CREATE TABLE files (
        name    TEXT NOT NULL,
        number  INTEGER NOT NULL,
        path    TEXT NOT NULL,
        sha256  TEXT NOT NULL,
        size    INTEGER NOT NULL,
        PRIMARY KEY (name, number, path),
        FOREIGN KEY (name, number) REFERENCES versions ON DELETE CASCADE
    );
    CREATE TABLE tags (
        name    TEXT NOT NULL,
        number  INTEGER NOT NULL,
        key     TEXT NOT NULL,
        value   TEXT NOT NULL,
        PRIMARY KEY (name, number, key),
        FOREIGN KEY (name, number) REFERENCES versions ON DELETE CASCADE
    );
    CREATE TABLE aliases (
        name    TEXT NOT NULL,
        alias   TEXT NOT NULL,
        number  INTEGER NOT NULL,
        PRIMARY KEY (name, alias),
        FOREIGN KEY (name, number) REFERENCES versions
    );
"""


@contextmanager
def reading(path: Path) -> Iterator[Connection]:
    """One consistent view of the tables; empty ones if there are none yet, and none are made.

    Raises StoreError if the file cannot be read.
    """
    with _in_words(path):
        if path.exists():
            with closing(_connect(path, mode="rw")) as connection:
                connection.execute("BEGIN")
                if _has_tables(connection, path):
                    yield connection
                    return
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            _make_tables(connection)
            yield connection


@contextmanager
def writing(path: Path) -> Iterator[Connection]:
    """Change the tables: all that is done within, or, after an error, nothing of it.

    Raises StoreError if the file cannot be written.
    """
    with _in_words(path), closing(_connect(path, mode="rwc")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not _has_tables(connection, path):
                _make_tables(connection)
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _connect(path: Path, *, mode: str) -> Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = EXTRA")  # a commit survives a power cut, too
    return connection


def _make_tables(connection: Connection) -> None:
    # Not `executescript`, which would end the transaction.
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_FORMAT}")


def _has_tables(connection: Connection, path: Path) -> bool:
    """Whether the tables are there; not if their maker was killed. Raises StoreError for others."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > _FORMAT:
        raise StoreError(
            f"{path} has format {found}; this ptrain reads {_FORMAT}",
            hint="upgrade plugin-trainer",
        )
    if found == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
        raise StoreError(f"{path} is not the registry of a model store")
    return bool(found)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        )
        if busy:
            raise StoreError(
                f"{path} has been in use by another process for {_BUSY_S:.0f} s",
                hint="nothing was changed; try again",
            ) from error
        raise StoreError(f"{path} cannot be used: {error}") from error
