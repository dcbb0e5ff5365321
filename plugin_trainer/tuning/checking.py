"""Whether a search can be made: keys that exist, values that the settings take, names of metrics.

Every end of a range and every choice goes through the same validation as --set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from plugin_trainer.configuration import Configuration, in_one_line, in_order, problem_at
from plugin_trainer.errors import Problem, PtrainError, SettingsError
from plugin_trainer.quoting import shown
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.names import closest
from plugin_trainer.registry.parts import CALLBACK_SETTINGS
from plugin_trainer.settings.layers import Merged
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key, join_key, split_key
from plugin_trainer.settings.tuning import (
    ObjectiveSettings,
    RangeSettings,
    StageSettings,
    TuneSettings,
    wrong_in,
)
from plugin_trainer.settings.validation import hint_at
from plugin_trainer.settings.words import bare, members
from plugin_trainer.tuning.ranges import Range, as_layer, conditions, in_drawing_order

Configure = Callable[..., Configuration]
"""`configure` with a study's sources, which takes more layers: configure(over=[layer])."""

# What makes a study one: it cannot differ from trial to trial.
_NOT_SEARCHED = ("name", "plugins", "tune", "best", "test_split")


def ranges_of(space: Mapping[str, RangeSettings], configuration: Configuration) -> list[Range]:
    """What is searched, in an order in which it can be drawn. The space must have been checked."""
    return in_drawing_order(_ranges(space, configuration))


def stages_of(tune: TuneSettings) -> tuple[StageSettings, ...]:
    """The searches to make: those listed, or one without a name."""
    return tune.stages or (StageSettings(name="", space=tune.space),)


def objectives_of(configuration: Configuration, stage: StageSettings) -> list[ObjectiveSettings]:
    """What a stage looks for, with everything that was left out said."""
    settings = configuration.settings
    assert settings.tune is not None
    best = ObjectiveSettings(metric=settings.best.watch, mode=settings.best.mode)
    given = stage.objectives or settings.tune.objectives or (best,)
    left_out: Literal["best", "last"] = "best" if len(given) == 1 else "last"
    return [
        ObjectiveSettings(metric=its.metric, mode=its.mode, take=its.take or left_out)
        for its in given
    ]


def refuse_wrong_space(
    configuration: Configuration, configure: Configure, *, more: Callable[..., Any] = lambda _: ()
) -> None:
    """Raise SettingsError with everything that is wrong with the search.

    more  further checks of one configuration, which give problems
    """
    problems = problems_in_tuning(configuration, configure, more=more)
    if problems:
        raise SettingsError(problems)


def problems_in_tuning(
    configuration: Configuration, configure: Configure, *, more: Callable[..., Any] = lambda _: ()
) -> list[Problem]:
    """Everything that is wrong with the search, each with its place."""
    given = Merged({}, dict(configuration.origins), places=configuration.places)
    found = [
        problem_at(key, text, merged=given) for key, text in _wrong(configuration, configure, more)
    ]
    return in_order(list(dict.fromkeys(found)), configuration.places)


Wrong = Iterator[tuple[Key, str]]


def _wrong(configuration: Configuration, configure: Configure, more: Callable[..., Any]) -> Wrong:
    tune = configuration.settings.tune
    if tune is None or not (tune.space or tune.stages):
        yield ("tune",), "nothing says what to search: give it a table [tune.space] or --space NAME"
        return
    if tune.space and tune.stages:
        yield ("tune", "space"), "there are stages too, each with a space: take one of both away"
    yield from _wrong_stages(tune)
    for stage in stages_of(tune):
        if not (configuration.settings.best.watch or tune.objectives or stage.objectives):
            yield ("tune", "objectives"), "nothing to look for: list objectives, or set best.watch"
    yield from _wrong_objectives(tune.objectives, at=("tune", "objectives"))
    yield from _wrong_winner(configuration, tune)
    for number, stage in enumerate(stages_of(tune)):
        at: Key = ("tune", "stages", str(number)) if tune.stages else ("tune",)
        yield from _wrong_objectives(stage.objectives, at=(*at, "objectives"))
        yield from _wrong_space(
            configuration, configure, more, stage.space, at=(*at, "space"), grid=tune.sampler
        )


def _wrong_stages(tune: TuneSettings) -> Wrong:
    names = [stage.name for stage in tune.stages]
    for number, stage in enumerate(tune.stages):
        at = ("tune", "stages", str(number))
        if not stage.name or not stage.name.replace("-", "_").isidentifier():
            yield (*at, "name"), f"{shown(stage.name)}: a name is letters, digits, - and _"
        elif names.index(stage.name) != number:
            yield (*at, "name"), f"there is a stage {shown(stage.name)} before it"
        if not stage.space:
            yield at, "it has no space: write [tune.stages.space.KEY] below it"


def _wrong_objectives(objectives: Sequence[ObjectiveSettings], *, at: Key) -> Wrong:
    names = [objective.metric for objective in objectives]
    for number, name in enumerate(names):
        key = (*at, str(number), "metric")
        split, slash, _ = name.partition("/")
        if not slash:
            yield key, f"'{name}' names no split; did you mean 'val/{name}'?"
        elif split not in ("val", "val_ema"):
            yield key, f"'{name}' is of no evaluation: those give val/... and val_ema/..."
        elif names.index(name) != number:
            yield key, f"'{name}' is an objective already"


def _wrong_winner(configuration: Configuration, tune: TuneSettings) -> Wrong:
    for number, stage in enumerate(stages_of(tune)):
        name = stage.winner_by or tune.winner_by
        metrics = [objective.metric for objective in objectives_of(configuration, stage)]
        if name and name not in metrics:
            own = bool(stage.winner_by)
            at: Key = ("tune", "stages", str(number)) if own else ("tune",)
            near = closest(name, metrics)
            there = f"did you mean '{near}'?" if near else f"there are: {', '.join(metrics)}"
            yield (*at, "winner_by"), f"'{name}' is no objective; {there}"


def _wrong_space(
    configuration: Configuration,
    configure: Configure,
    more: Callable[..., Any],
    space: Mapping[str, RangeSettings],
    *,
    at: Key,
    grid: str,
) -> Wrong:
    sound: dict[str, RangeSettings] = {}
    for name, searched in space.items():
        found = [*_wrong_key(name), *wrong_in(searched)]
        for part, text in found:
            yield (*at, name, *([part] if part else [])), text
        if not found:
            sound[name] = searched
    ranges = _ranges(sound, configuration)
    known = {join_key(split_key(name)) for name in space if not [*_wrong_key(name)]}
    for name, its in zip(sound, ranges.values(), strict=True):
        for key in its.when:
            if key not in known:
                near = closest(key, known)
                hint = f"; did you mean '{near}'?" if near else ""
                yield (*at, name, "when"), f"'{key}' is no key of this space{hint}"
            elif key in ranges:
                yield from _wrong_when(ranges[key], its.when[key], at=(*at, name, "when"))
        if grid == "grid" and its.points() is None:
            yield (*at, name), "a grid needs a step, or choices"
    ordered = [its.key for its in in_drawing_order(ranges)]
    for name, its in zip(sound, ranges.values(), strict=True):
        if its.key not in ordered:
            yield (*at, name, "when"), "it waits for itself: what it looks at looks at it"
            continue
        refused = {
            shown(value): [*_refused(its, value, ranges, configure, more)] for value in its.ends()
        }
        whatever = set.intersection(*map(set, refused.values()))  # an unknown key, say
        yield from (((*at, name), text) for text in whatever)
        for value, texts in refused.items():
            yield from (
                ((*at, name), f"with {value}: {text}") for text in texts if text not in whatever
            )


def _wrong_key(name: str) -> Iterator[tuple[str, str]]:
    try:
        key = split_key(name)
    except ValueError:
        yield "", "this is no key: write it as in a run file, such as optimizer.learning_rate"
        return
    if key[0] in _NOT_SEARCHED:
        yield "", f"{key[0]} is the same for all trials: it cannot be searched"


def _wrong_when(other: Range, values: Sequence[Any], *, at: Key) -> Wrong:
    """A condition that can never hold."""
    points = other.points()
    for value in values:
        if points is not None and value not in points:
            yield at, f"{other.key} is never {shown(value)}"


def _refused(
    its: Range,
    value: Any,
    ranges: Mapping[str, Range],
    configure: Configure,
    more: Callable[..., Any],
) -> Iterator[str]:
    """What the settings say against one value. What they say of others beside it may be due to
    these, so it is left to the trial.
    """
    values = {**_switched_on(its, ranges), its.key: value}
    try:
        configuration = configure(over=[as_layer(values, where="a trial")])
        problems = more(configuration)
    except SettingsError as error:
        problems = error.problems
    except PtrainError as error:
        problems = [Problem("", its.key, in_one_line(error))]
    for problem in problems:
        if _is_about(problem.key, its.key):
            yield problem.text


def _is_about(key: str, searched: str) -> bool:
    return key == searched or key.startswith(f"{searched}.")


def _switched_on(its: Range, ranges: Mapping[str, Range]) -> dict[str, Any]:
    """Values with which a key is searched at all."""
    values: dict[str, Any] = {}
    for key, wanted in its.when.items():
        if key in ranges:
            values.update(_switched_on(ranges[key], ranges))
        values[key] = wanted[0]
    return values


# --------------------------------------------------------------- whole numbers or not


def _ranges(space: Mapping[str, RangeSettings], configuration: Configuration) -> dict[str, Range]:
    found = {}
    for name, searched in space.items():
        key = join_key(split_key(name))
        found[key] = Range(
            key,
            searched,
            whole=_is_whole(searched) and not _takes_fractions(split_key(name), configuration),
            when=conditions(searched.when),
        )
    return found


def _is_whole(searched: RangeSettings) -> bool:
    numbers = (searched.low, searched.high, searched.step)
    return all(isinstance(number, int) for number in numbers if number is not None)


def _takes_fractions(key: Key, configuration: Configuration) -> bool:
    """Whether 0 to 1 of this key has values in between."""
    cls, below = _class_around(key, configuration)
    if cls is None:
        return False
    kinds = [bare(member)[0] for member in members(hint_at(cls, below))]
    return float in kinds and int not in kinds


def _class_around(key: Key, configuration: Configuration) -> tuple[type | None, Key]:
    """The dataclass that says what a key may be, and the key below it."""
    parts = {
        "model_settings": configuration.model,
        "data_settings": configuration.data,
        "schedule_settings": configuration.schedule,
    }
    if key[0] in parts:
        choice = parts[key[0]]
        return (settings_class(choice.offer) if choice else None), key[1:]
    if key[0] == CALLBACK_SETTINGS and len(key) > 1:
        for choice in configuration.callbacks:
            if key[1] in (choice.address, choice.offer.spec.name):
                return settings_class(choice.offer), key[2:]
        return None, key
    return RunSettings, key
