"""What `ptrain config check` looks at beyond types and names, without building anything.

Here torch is imported: it alone knows its optimizers, losses and schedules, and what they take.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from plugin_trainer.configuration import Configuration, in_one_line, in_order, problem_at
from plugin_trainer.errors import Problem, PtrainError
from plugin_trainer.registry.building import wrong_keywords, wrong_settings
from plugin_trainer.registry.parts import CALLBACK_SETTINGS, PARTS
from plugin_trainer.settings.layers import Merged
from plugin_trainer.settings.toml_lines import Key, join_key

Wrong = Iterator[tuple[Key, str]]

# What the run gives an optimizer itself, and the key that says it.
_SAID_ELSEWHERE = {"lr": "optimizer.learning_rate", "weight_decay": "optimizer.weight_decay"}


def problems_in(configuration: Configuration) -> list[Problem]:
    """Every mistake that would stop the run when it is put together."""
    found = [
        *_optimizer(configuration),
        *_loss(configuration),
        *_keywords(configuration),
        *_warmup(configuration),
        *_watched(configuration),
    ]
    given = Merged({}, dict(configuration.origins), places=configuration.places)
    problems = [problem_at(key, text, merged=given) for key, text in found]
    return in_order(problems, configuration.places)


def notes_on(configuration: Configuration) -> list[str]:
    """What is allowed, and perhaps not meant."""
    settings = configuration.settings
    length = settings.length
    return [
        f"{key}: every {cadence} is longer than the run of {length}: it happens at the end only"
        for key, cadence in (("evaluate", settings.evaluate), ("save", settings.save))
        if cadence is not None and cadence.unit == length.unit and cadence.amount > length.amount
    ]


def _optimizer(configuration: Configuration) -> Wrong:
    from plugin_trainer.training.optim.optimizers import optimizer_class

    settings = configuration.settings.optimizer
    try:
        target = optimizer_class(settings.name)
    except PtrainError as error:
        key = ("optimizer", "name")
        yield key, _without_key(error, key)
        return
    at = ("optimizer", "settings")
    for name in settings.settings:
        if name in _SAID_ELSEWHERE:
            yield (*at, name), f"it is given by {_SAID_ELSEWHERE[name]}"
    given = ("params", *_SAID_ELSEWHERE)
    for name, text in wrong_keywords(target, settings.settings, given=given):
        yield (*at, name), text


def _loss(configuration: Configuration) -> Wrong:
    from plugin_trainer.training.model.criterion import build_criterion

    try:
        build_criterion(configuration.settings.loss)
    except PtrainError as error:
        yield ("loss",), _without_key(error, ("loss",))
    except TypeError as error:  # a class that cannot do without arguments
        yield ("loss",), f"it cannot be made: {error}"


def _keywords(configuration: Configuration) -> Wrong:
    """The settings of what has no dataclass for them: they are keyword arguments."""
    chosen = {
        "model": configuration.model,
        "data": configuration.data,
        "scheduler": configuration.schedule,
    }
    parts = [
        *((chosen[kind], part.named, (part.table,)) for kind, part in PARTS.items()),
        *(
            (choice, ("callbacks",), (CALLBACK_SETTINGS, choice.address))
            for choice in configuration.callbacks
        ),
    ]
    for choice, named, table in parts:
        if choice is None or choice.offer.spec.settings:
            continue
        try:
            wrong = wrong_settings(choice.offer, choice.values())
        except PtrainError as error:
            yield named, _without_key(error, named)
            continue
        for name, text in wrong:
            yield (*table, name), text


def _warmup(configuration: Configuration) -> Wrong:
    """A warm-up must leave something of the run, as far as can be told without the data."""
    settings = configuration.settings
    warmup, length = settings.schedule.warmup, settings.length
    whole = {length.unit: length.amount, "%": Fraction(100)}.get(warmup.unit)
    if whole is not None and warmup.amount >= whole:
        yield (
            ("schedule", "warmup"),
            f"{warmup} is no shorter than the whole run of {length}: make it shorter",
        )


def _watched(configuration: Configuration) -> Wrong:
    """A metric is named with the split it is of."""
    settings = configuration.settings
    names: list[tuple[Key, str]] = [
        (("best", "watch"), settings.best.watch),
        (("schedule", "watch"), settings.schedule.watch),
    ]
    for choice in configuration.callbacks:
        if choice.address == "core/early_stopping":
            at = (CALLBACK_SETTINGS, choice.address, "watch")
            names.append((at, choice.settings.watch))
    for key, name in names:
        split, slash, _ = name.partition("/")
        if name and not slash:
            yield key, f"'{name}' names no split; did you mean 'val/{name}'?"
        elif split == "val_ema" and key == ("best", "watch"):
            raw = name.replace("val_ema/", "val/", 1)
            yield key, f"it is named as for raw weights: '{raw}'; the average has its own best"
        elif split in ("train", "test"):
            yield key, f"'{name}' is of no evaluation: those give val/... and val_ema/..."


def _without_key(error: PtrainError, key: Key) -> str:
    """The error as a problem has it, whose key stands before it already."""
    return in_one_line(error).removeprefix(f"{join_key(key)}: ")
