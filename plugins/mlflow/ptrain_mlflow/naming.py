"""Put names and values into the form that MLflow takes."""

from __future__ import annotations

import hashlib
import posixpath
import re
from typing import Any
from urllib.parse import urlsplit

from plugin_trainer.settings.render import in_one_line

# The limits of MLflow's stores; older servers take shorter values, and cut them themselves.
NAME_LENGTH = 250
PARAMETER_LENGTH = 6000
TAG_LENGTH = 5000
_HASH_LENGTH = 8

_REFUSED = re.compile(r"[^/\w.\- :]")


def name_for(name: str) -> str:
    """A metric's or a setting's name with what MLflow refuses in it made "_".

    A changed name ends in a hash of the original: "a@b" and "a%b" stay two, in every process.
    """
    taken = _REFUSED.sub("_", name)[:NAME_LENGTH]
    # MLflow takes names for paths, too, and refuses those that lead elsewhere: "/a", "a//b", "..".
    if posixpath.normpath(taken) != taken or taken.startswith(("/", "..")) or taken == ".":
        taken = taken.replace("/", "_").replace("..", "__").strip(".") or "_"
    return taken if taken == name else f"{taken[: NAME_LENGTH - _HASH_LENGTH - 1]}-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]


def parameter(value: Any) -> str:
    """A setting's value as text: a string as it is, anything else as the run file has it."""
    text = value if isinstance(value, str) else in_one_line(value)
    return cut(without_password(text), PARAMETER_LENGTH)


def cut(text: str, length: int) -> str:
    """The text, or as much of it as there is room for."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def without_password(uri: str) -> str:
    """The URI as it may be shown and stored; any other text as it is."""
    try:
        password = urlsplit(uri).password if "://" in uri else None
    except ValueError:
        return uri
    return uri.replace(f":{password}@", ":***@", 1) if password else uri
