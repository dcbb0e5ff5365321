"""Check a table against a dataclass and report every mistake at once, with its place."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from plugin_trainer.errors import Problem
from plugin_trainer.settings.toml_lines import Key, join_key

PlaceOf = Callable[[Key], str]


def validate(
    cls: type, values: Mapping[str, Any], *, place_of: PlaceOf, at: Key = ()
) -> tuple[Any, list[Problem]]:
    """An instance of the dataclass and no problems, or None and the problems.

    place_of  says where a key was given ("run.toml:7")
    at        the dotted key under which `values` stands
    """
    known, problems = _without_unknown_keys(cls, values, place_of=place_of, at=at)
    instance: Any = None
    try:
        instance = TypeAdapter(cls).validate_python(known)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key = at + _location(detail["loc"], known)
            problem = Problem(place_of(key), join_key(key), _explain(detail))
            if problem not in problems:
                problems.append(problem)
    return (None if problems else instance), problems


def unknown(name: str, known: Iterable[str], *, what: str) -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"no such {what}; did you mean '{close[0]}'?"
    return (
        f"no such {what}; there are: {', '.join(names)}"
        if names
        else f"no such {what}; there are none"
    )


def _without_unknown_keys(
    cls: type, values: Mapping[str, Any], *, place_of: PlaceOf, at: Key
) -> tuple[dict[str, Any], list[Problem]]:
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    known: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        key = (*at, name)
        if name not in fields:
            problems.append(
                Problem(place_of(key), join_key(key), unknown(name, fields, what="key"))
            )
            continue
        if isinstance(value, bool) and _is_number(hints.get(name)):
            text = f"{str(value).lower()} is not a number"
            problems.append(Problem(place_of(key), join_key(key), text))
            continue
        nested = _dataclass_in(hints.get(name))
        if nested is not None and isinstance(value, Mapping):
            known[name], more = _without_unknown_keys(nested, value, place_of=place_of, at=key)
            problems += more
        else:
            known[name] = value
    return known, problems


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass a hint stands for, alone or as `Dataclass | None`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [_dataclass_in(member) for member in typing.get_args(hint)]
        return next((member for member in found if member is not None), None)
    return None


def _is_number(hint: Any) -> bool:
    """Whether a hint takes numbers and no truth values, which Python would let pass for 0 and 1."""
    members = set(typing.get_args(hint) or (hint,))
    return bool(members & {int, float}) and members <= {int, float, type(None)}


def _location(loc: tuple[int | str, ...], values: Any) -> Key:
    """The part of pydantic's location that is a path in the table; the rest names union members."""
    key: list[str] = []
    for part in loc:
        if isinstance(values, Mapping) and (part in values or not key):
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif isinstance(values, Mapping) or (isinstance(values, list) and isinstance(part, int)):
            # A missing required key or item is named though it is not there.
            key.append(str(part))
            break
        else:
            break
        key.append(str(part))
    return tuple(key)


def _explain(detail: ErrorDetails) -> str:
    kind, given = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind == "literal_error":
        choices = [
            choice.strip("'")
            for choice in str(context["expected"]).replace(" or ", ", ").split(", ")
        ]
        close = difflib.get_close_matches(str(given), choices, n=1)
        suggestion = f" (did you mean '{close[0]}'?)" if close else ""
        return f"{given!r} is not one of {', '.join(choices)}{suggestion}"
    return f"{given!r} is not right: {_lower_first(detail['msg'])}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
