"""The keys that are searched, in an order in which each can be drawn, and how Optuna draws them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import Layer
from plugin_trainer.settings.render import flatten
from plugin_trainer.settings.toml_lines import join_key, split_key
from plugin_trainer.settings.tuning import RangeSettings

if TYPE_CHECKING:
    import optuna

SettingsWith = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_MOST_GRID_POINTS = 100_000


@dataclass(frozen=True)
class Range:
    """One key and what it may be.

    whole  of numbers from low to high, whether there are only whole ones
    when   by key of the same space, the values that switch this one on
    """

    key: str
    settings: RangeSettings
    whole: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def is_on(self, drawn: Mapping[str, Any]) -> bool:
        """Whether the values drawn so far switch this key on."""
        return all(
            key in drawn and any(_same(drawn[key], value) for value in values)
            for key, values in self.when.items()
        )

    def draw(self, trial: optuna.Trial) -> Any:
        """A value, by the sampler, the same again for a trial that has drawn it before."""
        its = self.settings
        if its.choices is not None:
            return trial.suggest_categorical(self.key, list(its.choices))
        assert its.low is not None and its.high is not None
        if self.whole:
            step = int(its.step or 1)
            return trial.suggest_int(self.key, int(its.low), int(its.high), step=step, log=its.log)
        return trial.suggest_float(
            self.key, float(its.low), float(its.high), step=its.step, log=its.log
        )

    def holds(self, value: Any) -> bool:
        """Whether a value lies in its range of numbers."""
        its = self.settings
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        assert its.low is not None and its.high is not None
        if not its.low <= value <= its.high:
            return False
        points = self.points() if its.step else None
        return points is None or any(math.isclose(value, point) for point in points)

    def ends(self) -> list[Any]:
        """Its outermost values, or all its choices: what the settings must take."""
        its = self.settings
        if its.choices is not None:
            return list(its.choices)
        kind = int if self.whole else float
        return [kind(value) for value in dict.fromkeys((its.low, its.high)) if value is not None]

    def points(self) -> list[Any] | None:
        """Every value it may have; None for a range without steps."""
        its = self.settings
        if its.choices is not None:
            return list(its.choices)
        assert its.low is not None and its.high is not None
        step = its.step or (1 if self.whole else None)
        if step is None or its.log:
            return self.ends() if its.low == its.high else None
        count = round((its.high - its.low) / step) + 1
        if self.whole:
            return [int(its.low + number * step) for number in range(int(count))]
        return [round(its.low + number * step, 12) for number in range(int(count))]


def known(ranges: Sequence[Range], settings_with: SettingsWith) -> dict[str, Any]:
    """The values that a run has already, by key, of those keys that may have them.

    settings_with  the settings of the run with further values, by key, over its own

    A choice counts as the value that the settings make of it: "cosine" is "core/cosine".
    """
    present = flatten(settings_with({}))
    found = {}
    for its in ranges:
        value = present.get(its.key)
        if its.settings.choices is None:
            if its.holds(value):
                found[its.key] = value
            continue
        for choice in sorted(its.settings.choices, key=lambda choice: not _same(choice, value)):
            with suppress(PtrainError):
                if _same(flatten(settings_with({its.key: choice})).get(its.key), value):
                    found[its.key] = choice
                    break
    return found


def draw(ranges: Sequence[Range], trial: optuna.Trial) -> dict[str, Any]:
    """The values of a trial by key, of the keys that are switched on."""
    drawn: dict[str, Any] = {}
    for its in ranges:
        if its.is_on(drawn):
            drawn[its.key] = its.draw(trial)
    return drawn


def grid(ranges: Sequence[Range], *, seed: int) -> list[dict[str, Any]]:
    """Every combination once, in a random order by the seed, so that any first part is spread out.

    Of more than 100 000 only so many are looked at.
    """
    found = list(itertools.islice(_combinations(list(ranges), {}), _MOST_GRID_POINTS))
    random.Random(seed).shuffle(found)
    return found


def _combinations(ranges: list[Range], drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not ranges:
        yield drawn
        return
    first, *rest = ranges
    if not first.is_on(drawn):
        yield from _combinations(rest, drawn)
        return
    for value in first.points() or ():
        yield from _combinations(rest, {**drawn, first.key: value})


def as_layer(values: Mapping[str, Any], *, where: str) -> Layer:
    """Values by dotted key as settings that go over others."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *tables, name = split_key(key)
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return Layer(where, nested)


def in_drawing_order(ranges: Mapping[str, Range]) -> list[Range]:
    """Each after those that its `when` looks at, else as they stand in the file.

    What stands in a circle is left out; `checking` has refused it.
    """
    ordered: list[Range] = []
    left = dict(ranges)
    while left:
        done = {its.key for its in ordered}
        ready = [key for key, its in left.items() if its.when.keys() & left.keys() - done == set()]
        if not ready:
            break
        ordered.append(left.pop(ready[0]))
    return ordered


def conditions(when: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """`when` by dotted key: {"a.b" = 1} and {a.b = 1} say the same, one value is a list of one."""
    found: dict[str, tuple[Any, ...]] = {}
    for key, value in when.items():
        try:
            own = join_key(split_key(key))
        except ValueError:
            own = key
        if isinstance(value, Mapping):
            found.update((f"{own}.{inner}", values) for inner, values in conditions(value).items())
        else:
            found[own] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal, but true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
