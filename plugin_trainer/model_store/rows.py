"""The lines of the registry's tables that hold versions, written and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from sqlite3 import Connection, Row
from typing import Any

from plugin_trainer.files import in_json
from plugin_trainer.model_store.artifacts import Artifact
from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.model_store.names import Reference
from plugin_trainer.model_store.versions import Version
from plugin_trainer.registry.blame import in_words
from plugin_trainer.registry.names import closest


def insert(connection: Connection, version: Version) -> None:
    """Write a version down, its files and its tags. Its aliases are `point`'s."""
    names = ("name", "number", "created", "run", "step", "weights", "watch", "mode", "content")
    values = [getattr(version, name) for name in names]
    values += [_text(part) for part in (version.metrics, version.settings, version.about)]
    marks = ", ".join("?" * len(values))
    connection.execute(
        f"INSERT INTO versions ({', '.join(names)}, metrics, settings, about) VALUES ({marks})",
        values,
    )
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
        [
            (version.name, version.number, path, artifact.sha256, artifact.size)
            for path, artifact in version.files.items()
        ],
    )
    add_tags(connection, version, version.tags)


def next_number(connection: Connection, name: str) -> int:
    """The number of a model's next version, which is then taken for ever."""
    connection.execute("INSERT OR IGNORE INTO models VALUES (?, 0)", (name,))
    connection.execute("UPDATE models SET last_number = last_number + 1 WHERE name = ?", (name,))
    found = connection.execute("SELECT last_number FROM models WHERE name = ?", (name,))
    return int(found.fetchone()[0])


def add_tags(connection: Connection, version: Version, tags: Mapping[str, str]) -> None:
    """Give a version tags; one of the same key is replaced."""
    connection.executemany(
        "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)",
        [(version.name, version.number, key, value) for key, value in tags.items()],
    )


def remove_tags(connection: Connection, version: Version, keys: Iterable[str]) -> None:
    """Take tags away."""
    connection.executemany(
        "DELETE FROM tags WHERE name = ? AND number = ? AND key = ?",
        [(version.name, version.number, key) for key in keys],
    )


def point(connection: Connection, alias: str, version: Version) -> int | None:
    """Let an alias mean this version; the number of the one that it meant before."""
    before = pointed_at(connection, version.name, alias)
    connection.execute(
        "INSERT OR REPLACE INTO aliases VALUES (?, ?, ?)", (version.name, alias, version.number)
    )
    return before


def unpoint(connection: Connection, name: str, alias: str) -> None:
    """Take an alias away."""
    connection.execute("DELETE FROM aliases WHERE name = ? AND alias = ?", (name, alias))


def pointed_at(connection: Connection, name: str, alias: str) -> int | None:
    """The number that an alias means; None if it means nothing."""
    found = connection.execute(
        "SELECT number FROM aliases WHERE name = ? AND alias = ?", (name, alias)
    ).fetchone()
    return None if found is None else int(found[0])


def remove(connection: Connection, version: Version) -> None:
    """Strike a version out, its files and tags with it. It must have no alias."""
    connection.execute(
        "DELETE FROM versions WHERE name = ? AND number = ?", (version.name, version.number)
    )


def wanted_files(connection: Connection) -> set[str]:
    """The hashes of the files that some version has."""
    return {row[0] for row in connection.execute("SELECT DISTINCT sha256 FROM files")}


def versions_of(
    connection: Connection, name: str = "", *, damaged: list[str] | None = None
) -> list[Version]:
    """A model's versions, or all models', the newest last.

    damaged  is given a line for each that cannot be used; left out, the first is an error
    """
    where, values = ("WHERE name = ?", (name,)) if name else ("", ())
    cursor = connection.cursor()
    cursor.row_factory = Row
    rows = cursor.execute(f"SELECT * FROM versions {where} ORDER BY name, number", values)
    found = []
    for row in rows.fetchall():
        try:
            found.append(_read(connection, row))
        except StoreError as error:
            if damaged is None:
                raise
            damaged.append(error.message)
    return found


def find(connection: Connection, reference: Reference) -> Version:
    """The version that a reference means. Raises StoreError, saying what there is, if none."""
    there = versions_of(connection, reference.name)
    if not there:
        names = [row[0] for row in connection.execute("SELECT DISTINCT name FROM versions")]
        raise StoreError(f"there is no model '{reference.name}'", hint=_offered(reference, names))
    if reference.is_newest:
        return there[-1]
    for version in there:
        if reference.number == version.number or reference.alias in version.aliases:
            return version
    has = ", ".join(str(version.number) for version in there)
    if not reference.alias:
        raise StoreError(f"there is no version {reference}", hint=f"its versions are: {has}")
    aliases = sorted(alias for version in there for alias in version.aliases)
    raise StoreError(
        f"{reference.name} has no alias '{reference.alias}'",
        hint=f"its aliases are: {', '.join(aliases) or 'none'}; its versions: {has}",
    )


def _offered(reference: Reference, names: list[str]) -> str:
    near = closest(reference.name, names)
    if near:
        return f"did you mean '{near}'?"
    return f"there are: {', '.join(sorted(names))}" if names else "there is none at all"


def _read(connection: Connection, row: Row) -> Version:
    """A version as it stands in the registry, which others may write too. Raises StoreError."""
    try:
        version = _version(connection, row)
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(row, in_words(error)) from None
    for name, kind in _TYPES.items():
        if not isinstance(value := getattr(version, name), kind):
            raise _damaged(row, f"{name} is {type(value).__name__}")
    for path, artifact in version.files.items():
        # They are written below a folder that the user names, and read below the store's.
        is_path = isinstance(path, str) and _PATH.fullmatch(path)
        if not is_path or {"..", "."} & {*path.split("/")}:
            raise _damaged(row, f"the path {path!r:.80} leaves the folder of the model")
        sha256, size = artifact.sha256, artifact.size
        if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise _damaged(row, f"{sha256!r:.80} is not a SHA-256")
        if not isinstance(size, int) or size < 0:
            raise _damaged(row, f"{size!r:.80} is not a size")
    return version


_TYPES = {
    **dict.fromkeys(("name", "created", "run", "weights", "watch", "mode", "content"), str),
    **dict.fromkeys(("number", "step"), int),
    **dict.fromkeys(("metrics", "settings", "about"), dict),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[^/\\\0]+(/[^/\\\0]+)*")


def _damaged(row: Row, why: str) -> StoreError:
    return StoreError(
        f"the registry's entry {row['name']}:{row['number']} cannot be used: {why}",
        hint="it was not written by ptrain: remove the model, and register it again",
    )


def _version(connection: Connection, row: Row) -> Version:
    key = (row["name"], row["number"])
    own = "WHERE name = ? AND number = ?"
    files = connection.execute(f"SELECT path, sha256, size FROM files {own} ORDER BY path", key)
    tags = connection.execute(f"SELECT key, value FROM tags {own} ORDER BY key", key)
    aliases = connection.execute(f"SELECT alias FROM aliases {own} ORDER BY alias", key)
    parts = {name: json.loads(row[name]) for name in ("metrics", "settings", "about")}
    parts["metrics"] = {name: float(value) for name, value in parts["metrics"].items()}
    return Version(
        **{name: row[name] for name in row.keys() if name not in parts},  # noqa: SIM118
        **parts,
        files={path: Artifact(sha256, size) for path, sha256, size in files},
        tags=dict(tags.fetchall()),
        aliases=tuple(alias for (alias,) in aliases),
    )


def _text(value: Any) -> str:
    """As JSON; what is not finite, as text that `float` reads."""
    return json.dumps(in_json(value), ensure_ascii=False, default=str)
