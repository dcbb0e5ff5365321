"""What models, aliases and tags may be called, and how one version of a model is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from plugin_trainer.model_store.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_RULE = "letters, digits, '_', '-' and '.', the first a letter or a digit, 100 at most"
_LONGEST_KEY, _LONGEST_VALUE = 100, 1000


@dataclass(frozen=True)
class Reference:
    """What a user typed for a version: NAME (its newest), NAME:VERSION or NAME@ALIAS."""

    name: str
    number: int | None = None
    alias: str = ""

    @property
    def is_newest(self) -> bool:
        """Whether it is a name alone."""
        return self.number is None and not self.alias

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.name}:{self.number}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def parse_reference(text: str) -> Reference:
    """Read NAME, NAME:VERSION or NAME@ALIAS. Raises StoreError for anything else."""
    name, colon, number = text.partition(":")
    if colon:
        if re.fullmatch(r"[1-9][0-9]{0,17}", number) is None:
            raise StoreError(
                f"{text!r} is not a version: {number!r} is not a number from 1",
                hint="write NAME:3, or NAME@production for an alias",
            )
        return Reference(check_name(name), number=int(number))
    name, at, alias = text.partition("@")
    if at:
        return Reference(check_name(name), alias=check_alias(alias))
    return Reference(check_name(name))


def check_name(name: str) -> str:
    """The name, if a model may have it. Raises StoreError if not.

    What could be taken for a path, a drive, an option or a version is no name: "../x", "a/b",
    "C:x", "-x", "".
    """
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"{name!r} cannot be the name of a model", hint=f"a name is {_RULE}")
    return name


def check_alias(alias: str) -> str:
    """The alias, if it may be one. Raises StoreError if not."""
    if _NAME.fullmatch(alias) is None:
        raise StoreError(f"{alias!r} cannot be an alias", hint=f"an alias is {_RULE}")
    if alias.isdigit():
        raise StoreError(
            f"{alias!r} cannot be an alias: it looks like a version",
            hint="write NAME:3 for a version",
        )
    if alias == "latest":
        raise StoreError(
            "'latest' cannot be an alias: it would not move when a version comes in",
            hint="the name alone, without version or alias, means the newest",
        )
    return alias


def check_tag(key: str, value: str) -> tuple[str, str]:
    """The tag, if it may be one. Raises StoreError if not."""
    if not key.strip() or "=" in key or not key.isprintable() or len(key) > _LONGEST_KEY:
        raise StoreError(
            f"{key!r} cannot be the key of a tag",
            hint=f"a key is printable text without '=', {_LONGEST_KEY} characters at most",
        )
    if not value.isprintable() or len(value) > _LONGEST_VALUE:
        raise StoreError(
            f"{value!r} cannot be the value of the tag '{key}'",
            hint=f"a value is printable text, {_LONGEST_VALUE} characters at most",
        )
    return key, value
