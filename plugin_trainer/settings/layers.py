"""Where settings come from, and how later ones go over earlier ones: recipe < run file < --set."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time
from pathlib import Path
from typing import Any

from plugin_trainer.errors import Problem, RunFolderError, SettingsError
from plugin_trainer.settings.toml_lines import Key, key_lines, split_key

# A different choice makes the settings of the earlier one meaningless, so they go with it.
_BELONGS_TO: dict[Key, Key] = {
    ("model_settings",): ("model",),
    ("data_settings",): ("data",),
    ("schedule_settings",): ("schedule", "name"),
    ("optimizer", "settings"): ("optimizer", "name"),
}


# Tables that a name alone stands for.
_NAMED = ("optimizer", "schedule")

CALLBACKS: Key = ("callbacks",)


@dataclass(frozen=True)
class Layer:
    """Settings from one place.

    where  names the place: a file, or --set
    lines  on which line each key stands
    texts  what was typed for each key, where the place has one text a key
    """

    where: str
    values: Mapping[str, Any]
    lines: Mapping[Key, int] = field(default_factory=dict)
    texts: Mapping[Key, str] = field(default_factory=dict)

    def place_of(self, key: Key) -> str:
        """The file and line of a key, or of the nearest table around it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.where}:{self.lines[key[:length]]}"
        return self.where


@dataclass(frozen=True)
class Merged:
    """All layers as one table, and for each leaf the place it came from.

    origins  by key, and for a list of tables by the keys in it too
    texts    what was typed for a key, where it was typed
    places   the names of the layers, the lowest first
    """

    values: dict[str, Any]
    origins: dict[Key, str]
    texts: dict[Key, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def place_of(self, key: Key) -> str:
        """Where a key was given; for one that was not, where the table around it was."""
        for length in range(len(key), 0, -1):
            around = key[:length]
            if around in self.origins:
                return self.origins[around]
            for known, place in self.origins.items():
                if known[:length] == around:
                    return place
        return "default"

    def height_of(self, key: Key) -> int:
        """The number of the highest layer that gave something at or below a key; -1 for none."""
        heights = {place: number for number, place in enumerate(self.places)}
        given = (place for known, place in self.origins.items() if known[: len(key)] == key)
        files = (place if place in heights else place.rpartition(":")[0] for place in given)
        return max((heights.get(file, -1) for file in files), default=-1)


def read_toml(path: Path, *, where: str = "") -> Layer:
    """A run file as a layer. Raises SettingsError with the line if it is not TOML."""
    where = where or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFolderError(
            f"there is no run file {path}",
            hint=f"give the path of a TOML file; a plugin is run with --plugin {path.name}",
        ) from None
    except IsADirectoryError:
        inside = [file for file in ("run.toml", "best.toml") if (path / file).is_file()]
        raise RunFolderError(
            f"the run file {path} is a folder",
            hint=f"give the file in it: {path / inside[0]}" if inside else (),
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"the run file {path} cannot be read: {error}") from None
    try:
        values = _loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is the former
        raise SettingsError([Problem(where, "", f"not TOML: {error}")]) from None
    return Layer(where, values, key_lines(text))


def from_assignments(assignments: Sequence[str]) -> Layer:
    """--set KEY=VALUE, each VALUE read as TOML if it is TOML and as text otherwise."""
    layer: dict[str, Any] = {}
    texts: dict[Key, str] = {}
    problems: list[Problem] = []
    for assignment in assignments:
        key_text, equals, value_text = assignment.partition("=")
        place = f"--set {assignment}"
        try:
            key = split_key(key_text.strip())
        except (tomllib.TOMLDecodeError, ValueError):
            equals = ""
        if not equals:
            problems.append(
                Problem(place, "", "write it as KEY=VALUE, such as optimizer.learning_rate=1e-4")
            )
            continue
        if not _insert(layer, key, _value(value_text)):
            problems.append(Problem(place, "", "another --set gives this key another shape"))
        texts[key] = value_text
    if problems:
        raise SettingsError(problems)
    return Layer("--set", layer, texts=texts)


def _loads(text: str) -> dict[str, Any]:
    """The TOML text's table. Raises ValueError or RecursionError where it is none."""
    values = tomllib.loads(text)
    if _has_long_integer(values):  # tomllib reads them, and Python refuses to print the longest
        raise ValueError("an integer has more than 64 bits")
    return values


def _has_long_integer(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_long_integer, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _value(text: str) -> Any:
    try:
        table = _loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # No setting is a date, but a name may look like one; a second key is text with a line break.
    is_plain = len(table) == 1 and not isinstance(table["value"], (date, time))
    return table["value"] if is_plain else text


def _insert(table: dict[str, Any], key: Key, value: Any) -> bool:
    for part in key[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return False
    table[key[-1]] = value
    return True


def merge(layers: Sequence[Layer]) -> Merged:
    """The layers as one, later over earlier; tables are merged, everything else is replaced."""
    merged = Merged({}, {}, places=tuple(layer.where for layer in layers))
    for layer in map(_with_names, layers):
        for table, choice in _BELONGS_TO.items():
            before, after = look_up(merged.values, choice), look_up(layer.values, choice)
            if before is not None and after is not None and before != after:
                _drop(merged, table)
        _lay_over(merged, layer, merged.values, layer.values, ())
    return merged


def _with_names(layer: Layer) -> Layer:
    """`optimizer = "SGD"` is short for `optimizer.name = "SGD"`."""
    short = {name: layer.values[name] for name in _NAMED if isinstance(layer.values.get(name), str)}
    values = {**layer.values, **{name: {"name": value} for name, value in short.items()}}
    return replace(layer, values=values) if short else layer


def look_up(values: Mapping[str, Any], key: Key) -> Any:
    """The value at a dotted key; None if there is none."""
    found: Any = values
    for part in key:
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _lay_over(
    merged: Merged, layer: Layer, below: dict[str, Any], above: Mapping[str, Any], at: Key
) -> None:
    for name, value in above.items():
        key = (*at, name)
        if isinstance(value, Mapping):
            if not isinstance(below.get(name), dict):
                below[name] = {}
                _forget(merged, key)
            if not value:
                merged.origins.setdefault(key, layer.place_of(key))
            _lay_over(merged, layer, below[name], value, key)
        else:
            value = list(value) if isinstance(value, (list, tuple)) else value
            below[name] = _signed_over(below.get(name), value) if key == CALLBACKS else value
            _forget(merged, key)
            merged.origins[key] = layer.place_of(key)
            inside = (known for known in layer.lines if known[: len(key)] == key)
            merged.origins.update((known, layer.place_of(known)) for known in inside)
            if key in layer.texts:
                merged.texts[key] = layer.texts[key]


def _signed_over(below: Any, above: Any) -> Any:
    """A list of callbacks over another, which it replaces unless each of its names has a sign, + or
    -, and so says what to change.
    """
    if not (isinstance(above, list) and all(isinstance(name, str) for name in above)):
        return above
    changes = bool(above) and all(name.startswith(("+", "-")) for name in above)
    kept = below if changes and isinstance(below, list) else []
    return [*kept, *(name.removeprefix("+") for name in above)]


def _forget(merged: Merged, key: Key) -> None:
    for kept in (merged.origins, merged.texts):
        for known in [known for known in kept if known[: len(key)] == key]:
            del kept[known]


def _drop(merged: Merged, key: Key) -> None:
    holder = look_up(merged.values, key[:-1]) if len(key) > 1 else merged.values
    if isinstance(holder, dict):
        holder.pop(key[-1], None)
    _forget(merged, key)
