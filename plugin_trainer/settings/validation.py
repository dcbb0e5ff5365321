"""Check a table against a dataclass and report every mistake at once, with its place.

Types are checked here, strictly and in our own words: pydantic would let "3" pass for 3, and its
words are for programmers. What a type cannot say, such as bounds and validators, is pydantic's.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from pydantic import BeforeValidator, PlainValidator, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import ErrorDetails

from plugin_trainer.errors import Problem
from plugin_trainer.quoting import shown
from plugin_trainer.settings.foreign_keys import WRITE
from plugin_trainer.settings.toml_lines import Key, join_key
from plugin_trainer.settings.words import (
    bare,
    bounds_in_words,
    choices_of,
    dataclass_in,
    in_words,
    items_of,
    members,
    takes_none,
    values_of,
)

PlaceOf = Callable[[Key], str]

_WRONG = object()
_WITH_SETTINGS = (("model",), ("data",))
_HAS_ITS_OWN_WORDS = (BeforeValidator, PlainValidator, WrapValidator)
# Everything else that is no number, such as numpy's, is left to pydantic.
_NO_NUMBERS = (str, bytes, bool, Mapping, list, tuple, date, time, type(None))


def validate(
    cls: type, values: Mapping[str, Any], *, place_of: PlaceOf, at: Key = ()
) -> tuple[Any, list[Problem]]:
    """An instance of the dataclass and no problems, or None and the problems.

    place_of  says where a key was given ("run.toml:7")
    at        the dotted key under which `values` stands
    """
    checker = _Types()
    known = checker.table(cls, values, at)
    found = checker.found
    instance: Any = None
    try:
        instance = _adapter(cls).validate_python(known)
    except ValidationError as error:
        for key, text in _by_key(cls, known, error):
            # What is said already is not said again, nor what only follows from it.
            follows = any(wrong[: len(at + key)] == at + key for wrong in checker.left_out)
            if not follows and (at + key, text) not in found:
                found.append((at + key, text))
    problems = [Problem(place_of(key), join_key(key), text) for key, text in found]
    return (None if problems else instance), problems


@lru_cache(maxsize=128)
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)  # 5 to 30 ms, and a study validates a run's tables for every trial


def unknown(name: str, known: Iterable[str], *, what: str) -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    if near := _nearest(name, names):
        return f"no such {what}; did you mean '{near}'?"
    return (
        f"no such {what}; there are: {', '.join(names)}"
        if names
        else f"no such {what}; there are none"
    )


def with_texts(
    cls: type, values: Mapping[str, Any], texts: Mapping[Key, str], *, at: Key = ()
) -> dict[str, Any]:
    """The table with what was typed, where a text is wanted and the typed text looks like a number.

    texts  by key, what was typed after `--set KEY=`
    """
    changed = dict(values)
    for name, hint in hints_of(cls).items():
        key, value = (*at, name), values.get(name)
        nested = dataclass_in(hint)
        if isinstance(value, Mapping) and nested is not None:
            changed[name] = with_texts(nested, value, texts, at=key)
        elif isinstance(value, (int, float)) and key in texts and _takes_text_only(hint):
            changed[name] = texts[key]
    return changed


def hints_of(cls: type) -> dict[str, Any]:
    """The hints of a dataclass's keys; those of a class that names what it did not import, Any."""
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    try:
        hints = _evaluated(cls)
    except NameError:
        return dict.fromkeys(names, Any)
    return {name: hints[name] for name in names}


@lru_cache(maxsize=128)
def _evaluated(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)  # 1 ms, ten times a run


def hint_at(cls: type, key: Key) -> Any:
    """The hint of a key below a dataclass; Any where none says."""
    hint: Any = cls
    for part in key:
        nested = dataclass_in(hint)
        if nested is not None:
            hint = hints_of(nested).get(part, Any)
        elif (inner := values_of(hint)) is not None:
            hint = inner
        else:
            items = next((found for found in map(items_of, members(hint)) if found), None)
            hint = items[0] if items else Any
    return hint


def _takes_text_only(hint: Any) -> bool:
    _, metadata = bare(hint)
    if any(isinstance(item, _HAS_ITS_OWN_WORDS) for item in metadata):
        return False
    kinds = members(hint)
    return all(
        inner is str
        or (isinstance(inner, type) and issubclass(inner, PurePath))
        or (choices_of(inner) and all(isinstance(choice, str) for choice in choices_of(inner)))
        for inner, _ in map(bare, kinds)
    )


class _Types:
    """Goes through a table beside the hints of its dataclass and keeps what is wrong.

    found     the mistakes, by key
    left_out  keys whose values are not passed on, because they are wrong
    """

    def __init__(self) -> None:
        self.found: list[tuple[Key, str]] = []
        self.left_out: list[Key] = []
        self._named_by_users: set[Key] = set()

    def table(self, cls: type, values: Mapping[str, Any], at: Key) -> dict[str, Any]:
        """The table's known keys, as far as their types are right."""
        hints = hints_of(cls)
        known: dict[str, Any] = {}
        for name, value in values.items():
            key = (*at, name)
            if name not in hints:
                text = unknown(name, hints, what="key")
                if name in WRITE and (not at or WRITE[name].startswith(f"{'.'.join(at)}.")):
                    text = f"no such key; write {WRITE[name]}"
                if isinstance(value, Mapping) and at in self._named_by_users:
                    text += _about_dots(key)
                self.found.append((key, text))
                continue
            checked = self.value(hints[name], value, key)
            if checked is not _WRONG:
                known[name] = checked
        return known

    def value(self, hint: Any, value: Any, key: Key) -> Any:
        """The value, without what is wrong in it; _WRONG if it is not of the hint's type."""
        inner, metadata = bare(hint)
        nested = dataclass_in(hint)
        if nested is not None and isinstance(value, Mapping):
            return self.table(nested, value, key)
        if any(isinstance(item, _HAS_ITS_OWN_WORDS) for item in metadata):
            return value
        kinds = members(inner)
        if len(kinds) > 1:
            return self._union(hint, kinds, value, key)
        if kinds != (inner,):  # X | None
            return value if value is None else self.value(kinds[0], value, key)
        if (items := items_of(inner)) is not None:
            return self._list(inner, items, value, key)
        if (of_values := values_of(inner)) is not None:
            return self._free_table(inner, of_values, value, key)
        if nested is not None:
            if isinstance(value, nested):
                return value
            return self._no_table(key, value)
        return self._plain(inner, value, key)

    def _plain(self, inner: Any, value: Any, key: Key) -> Any:
        if choices := choices_of(inner):
            if any(type(value) is type(choice) and value == choice for choice in choices):
                return value
            return self._say(key, not_one_of(value, choices))
        if inner in (int, float):
            if isinstance(value, _NO_NUMBERS):
                return self._wrong(key, value, inner, _without_quotes(value, "number"))
        elif inner is bool:
            if not isinstance(value, bool):
                return self._wrong(key, value, inner, _without_quotes(value, "bool"))
        elif inner is str and not isinstance(value, (str, PurePath)):
            remedy = ": write it in quotes" if isinstance(value, (int, float)) else ""
            if isinstance(value, Mapping) and key in _WITH_SETTINGS:
                remedy = f": [{key[0]}_settings] is the table of its settings"
            return self._wrong(key, value, inner, remedy)
        return value

    def _union(self, hint: Any, kinds: tuple[Any, ...], value: Any, key: Key) -> Any:
        if value is None and takes_none(hint):
            return value
        lists = [kind for kind in kinds if items_of(kind) is not None]
        if isinstance(value, (list, tuple)) and len(lists) == 1:
            return self.value(lists[0], value, key)
        for kind in kinds:
            trial = _Types()
            if trial.value(kind, value, key) is not _WRONG and not trial.found:
                return value
        return self._wrong(key, value, hint)

    def _list(self, hint: Any, items: tuple[Any, ...], value: Any, key: Key) -> Any:
        if not isinstance(value, (list, tuple)):
            if isinstance(value, (set, frozenset)) or hasattr(value, "__array__"):
                return value
            is_text = isinstance(value, str) or items[0] is str
            quoted = f'"{value}"' if is_text else value
            alone = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            return self._wrong(key, value, list, f": write [{quoted}]" if alone else "")
        any_number = items[-1] is ...
        if not any_number and len(items) != len(value):
            return self._wrong(key, value, hint)
        hints = [items[0]] * len(value) if any_number else items
        checked = [
            self.value(item, part, (*key, str(number)))
            for number, (item, part) in enumerate(zip(hints, value, strict=True))
        ]
        if any(part is _WRONG for part in checked):
            self.left_out.append(key)
            return _WRONG
        return checked

    def _free_table(self, hint: Any, of_values: Any, value: Any, key: Key) -> Any:
        if not isinstance(value, Mapping):
            return self._no_table(key, value)
        self._named_by_users.update((*key, name) for name in value)
        checked = {name: self.value(of_values, part, (*key, name)) for name, part in value.items()}
        return {name: part for name, part in checked.items() if part is not _WRONG}

    def _wrong(self, key: Key, value: Any, hint: Any, remedy: str = "") -> Any:
        return self._say(key, f"{shown(value)} is not {in_words(hint)}{remedy}")

    def _no_table(self, key: Key, value: Any) -> Any:
        name = join_key(key)
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            return self._say(key, f"[[{name}]] begins a list of tables: write [{name}]")
        return self._say(key, f"{shown(value)} is not a table: write its keys under [{name}]")

    def _say(self, key: Key, text: str) -> Any:
        self.found.append((key, text))
        self.left_out.append(key)
        return _WRONG


def not_one_of(value: Any, choices: Iterable[Any]) -> str:
    """The sentence for a value that is none of the choices, with the nearest."""
    names = [choice if isinstance(choice, str) else shown(choice) for choice in choices]
    near = _nearest(str(value), names)
    suggestion = f" (did you mean '{near}'?)" if near else ""
    return f"{shown(value)} is not one of {', '.join(names)}{suggestion}"


def _nearest(name: str, names: list[str]) -> str:
    """The name most like it; empty if none is like it at all."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def _about_dots(key: Key) -> str:
    """What to add where a table's name was probably meant to have a dot in it."""
    name = join_key((*key[:-2], ".".join(key[-2:])))
    return f"; a name with a dot in it needs quotes: [{name}]"


def _without_quotes(value: Any, kind: str) -> str:
    """The remedy for "3" in place of 3, and "true" in place of true."""
    if not isinstance(value, str):
        return ""
    fits = value in ("true", "false") if kind == "bool" else _reads_as_a_number(value)
    return ": write it without quotes" if fits else ""


def _reads_as_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------- what only pydantic finds wrong


def _by_key(
    cls: type, values: Mapping[str, Any], error: ValidationError
) -> Iterable[tuple[Key, str]]:
    """Each wrong key, and what is wrong. A union's members complain one by one, of one mistake."""
    details: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_location(detail["loc"], values), []).append(detail)
    for key, several in details.items():
        hint = hint_at(cls, key)
        if len(several) > 1 and len(members(hint)) > 1:
            yield key, f"{shown(_value_at(values, key))} is not {in_words(hint)}"
        else:
            for detail in several:
                yield key, _explain(detail)


def _value_at(values: Any, key: Key) -> Any:
    for part in key:
        values = values[part] if isinstance(values, Mapping) else values[int(part)]
    return values


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


# By the first word of the name of pydantic's error: what the value is not.
_IS_NOT = {
    "int": in_words(int),
    "float": in_words(float),
    "decimal": in_words(float),
    "finite": "a finite number",
    "bool": in_words(bool),
    "string": in_words(str),
    **dict.fromkeys(("tuple", "list", "set", "frozen", "iterable"), in_words(list)),
    **dict.fromkeys(("dict", "mapping", "dataclass", "model"), in_words(dict)),
    "path": in_words(PurePath),
    "date": "a date",
    "datetime": "a date and time",
    "time": "a time",
}
_LIMITS = {
    "greater_than": ("gt", "too small"),
    "greater_than_equal": ("ge", "too small"),
    "less_than": ("lt", "too large"),
    "less_than_equal": ("le", "too large"),
}


def _explain(detail: ErrorDetails) -> str:
    """One of pydantic's errors in plain words."""
    kind, given = detail["type"], shown(detail["input"])
    context = detail.get("ctx", {})
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "is required"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"]))
    if kind in _LIMITS:
        name, size = _LIMITS[kind]
        if isinstance(detail["input"], float) and math.isnan(detail["input"]):
            return f"{given} is not a number"
        return f"{given} is {size}: it must be {bounds_in_words({name: context[name]})}"
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"]).replace(" or ", ", ").split(", ")
        return not_one_of(detail["input"], [choice.strip("'") for choice in expected])
    if kind == "multiple_of":
        return f"{given} is not a multiple of {context['multiple_of']}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not match {context['pattern']}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return f"{given} is {_length_in_words(kind, context)}"
    if (head := kind.partition("_")[0]) in _IS_NOT:
        return f"{given} is not {_IS_NOT[head]}"
    words = detail["msg"].replace("Input should be", "it should be").replace(" valid ", " ")
    return f"{given} is not right: {words[:1].lower()}{words[1:]}"


def _length_in_words(kind: str, context: Mapping[str, Any]) -> str:
    what = "characters" if kind.startswith("string") else "items"
    if kind.endswith("short"):
        return f"too short: it must have {context['min_length']} {what} or more"
    return f"too long: it may have {context['max_length']} {what} at most"
