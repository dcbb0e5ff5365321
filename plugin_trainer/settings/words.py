"""What a setting may be, in words for a user: read from its annotation."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from plugin_trainer.cadence import Span
from plugin_trainer.quoting import shown

_BOUNDS = ("gt", "ge", "lt", "le")
_LISTS = (tuple, list, set, frozenset, Sequence)


@dataclass(frozen=True, eq=False)
class Spelt:
    """How a setting with a validator of its own is written; stands in its annotation.

    words   completes "write ..."
    schema  its JSON Schema; empty: that of its type
    also    JSON Schemas of what may stand there beside that
    """

    words: str
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    also: tuple[Mapping[str, Any], ...] = ()

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """What pydantic puts into the JSON Schema of the dataclass."""
        if self.schema:
            return dict(self.schema)
        of_type: dict[str, Any] = handler(core_schema)
        return {"anyOf": [*map(dict, self.also), of_type]} if self.also else of_type


def in_words(hint: Any) -> str:
    """What a hint takes: "a whole number, 1 or more"; "text or a list of texts"."""
    inner, metadata = bare(hint)
    for item in metadata:
        if isinstance(item, Spelt):
            return item.words
    words = _words_of(inner)
    bounds = bounds_in_words(bounds_of(hint))
    return f"{words}, {bounds}" if bounds else words


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint without its annotations, and the annotations."""
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def members(hint: Any) -> tuple[Any, ...]:
    """What a union is made of, without None; of anything else, the hint alone."""
    inner, _ = bare(hint)
    if typing.get_origin(inner) in (Union, types.UnionType):
        return tuple(member for member in typing.get_args(inner) if member is not type(None))
    return (inner,)


def takes_none(hint: Any) -> bool:
    """Whether a key may be without a value."""
    inner, _ = bare(hint)
    return type(None) in typing.get_args(inner)


def dataclass_in(hint: Any) -> type | None:
    """The dataclass a hint stands for, alone or in a union; None if there are several."""
    found = [
        inner
        for inner, _ in map(bare, members(hint))
        if isinstance(inner, type) and dataclasses.is_dataclass(inner) and inner is not Span
    ]
    return found[0] if len(found) == 1 else None


def items_of(hint: Any) -> tuple[Any, ...] | None:
    """The hints of a list's items, Ellipsis at the end if there may be any number; else None."""
    inner, _ = bare(hint)
    origin = typing.get_origin(inner) or inner
    if origin not in _LISTS:
        return None
    given = typing.get_args(inner) or (Any,)
    return given if origin is tuple and typing.get_args(inner) else (given[0], ...)


def values_of(hint: Any) -> Any:
    """The hint of a table's values, for a table whose keys are free; None for anything else."""
    inner, _ = bare(hint)
    origin = typing.get_origin(inner) or inner
    if not (isinstance(origin, type) and issubclass(origin, Mapping)):
        return None
    given = typing.get_args(inner)
    return given[1] if len(given) == 2 else Any


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal; none of anything else."""
    inner, _ = bare(hint)
    return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()


def bounds_of(hint: Any) -> dict[str, Any]:
    """The limits of a number: {"ge": 1}."""
    _, metadata = bare(hint)
    flat = [part for item in metadata for part in (item, *getattr(item, "metadata", ()))]
    return {
        name: getattr(item, name)
        for item in flat
        for name in _BOUNDS
        if getattr(item, name, None) is not None
    }


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """The limits: "1 or more", "from 0 to 1", "more than 0 and less than 1"."""
    limits = {name: _without_a_bare_point(limit) for name, limit in bounds.items()}
    if "ge" in limits and "le" in limits:
        return f"from {limits['ge']} to {limits['le']}"
    words = {
        "gt": "more than {}", "ge": "{} or more", "lt": "less than {}", "le": "{} or less",
    }  # fmt: skip
    return " and ".join(words[name].format(limit) for name, limit in limits.items())


def _without_a_bare_point(limit: Any) -> Any:
    """1.0 as 1."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def listed(words: Sequence[str], *, last: str = "or") -> str:
    """Words as a sentence has them: a, b or c."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final


def _words_of(inner: Any) -> str:
    several = members(inner)
    if len(several) > 1:
        return listed([*dict.fromkeys(map(in_words, several))])
    if several != (inner,):
        return in_words(several[0])
    if choices := choices_of(inner):
        return listed([f'"{choice}"' if isinstance(choice, str) else shown(choice)
                       for choice in choices])  # fmt: skip
    if (items := items_of(inner)) is not None:
        return _list_in_words(items)
    if values_of(inner) is not None or dataclass_in(inner):
        return "a table"
    if isinstance(inner, type) and issubclass(inner, PurePath):
        return "a path"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return plain.get(inner, "any value")


def _list_in_words(items: tuple[Any, ...]) -> str:
    if items[-1] is not ...:
        kinds = [*dict.fromkeys(map(_many, items))]
        return f"a list of {len(items)} {listed(kinds, last='and')}"
    many = _many(items[0])
    return f"a list of {many}" if many else "a list"


def _many(hint: Any) -> str:
    words = in_words(hint)
    plurals = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts",
               "a table": "tables", "a path": "paths", "any value": ""}  # fmt: skip
    head, comma, rest = words.partition(", ")
    return plurals.get(head, f"({head})") + (f", each {rest}" if comma else "")
