"""What [tune] may say: which settings are searched, what is looked for, and how long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from plugin_trainer.quoting import shown


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """One key of the run that is searched: from low to high, or one of some choices.

    low      the smallest value
    high     the largest value
    step     how far values are apart; whole numbers are 1 apart if nothing is said
    log      draw on a logarithmic scale, so that 1e-5 to 1e-4 counts as much as 1e-4 to 1e-3
    choices  the values there are, in place of low and high
    when     keys of the same space and the value, or list of values, that each must have; otherwise
             this key is left as the run has it
    """

    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What makes one trial better than another.

    metric  an evaluation's metric: "val/task_loss", "val_ema/accuracy"
    mode    whether lower ("min") or higher ("max") is better
    take    which evaluation of the trial counts: its "best", its "last", or the "mean" of all that
            were made; left out, the best, and of several objectives the last, so that the values of
            a trial belong together
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    take: Literal["best", "last", "mean"] | None = None


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One search of several: it starts from the winner of the one before.

    name        its folder, and the end of its study's name
    trials      how many trials in all; left out, tune.trials
    objectives  what is looked for; left out, tune.objectives
    winner_by   as tune.winner_by, which holds where it is left out
    space       the keys that are searched
    """

    name: str
    trials: Annotated[int | None, Field(ge=1)] = None
    objectives: tuple[ObjectiveSettings, ...] = ()
    winner_by: str = ""
    space: Mapping[str, RangeSettings] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """A search for settings. `ptrain tune` reads it; a run does not.

    trials            how many trials in all, failed and pruned ones too
    objectives        what is looked for, one table [[tune.objectives]] each; left out, best.watch
    winner_by         of several objectives, the metric by which one trial of the Pareto front is
                      chosen; left out, the first
    sampler           how values are drawn: "tpe", "random", "grid", or a class of optuna.samplers
                      by its name
    sampler_settings  further keyword arguments of the sampler
    pruner            how bad trials are found early: "median", "none", or a class of optuna.pruners
                      by its name. Trials of several objectives cannot be pruned
    pruner_settings   further keyword arguments of the pruner
    give_up_after     stop once so many trials have failed and none has not
    heartbeat         seconds between signs of life of a worker; one that gave none for twice as
                      long has lost its trial
    space             the keys that are searched, a table each:
                      [tune.space."optimizer.learning_rate"]
    stages            searches one after the other, a table [[tune.stages]] each, in place of space
    """

    trials: Annotated[int, Field(ge=1)] = 25
    objectives: tuple[ObjectiveSettings, ...] = ()
    winner_by: str = ""
    sampler: str = "tpe"
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)
    pruner: str = "median"
    pruner_settings: Mapping[str, Any] = field(default_factory=dict)
    give_up_after: Annotated[int, Field(ge=1)] = 3
    heartbeat: Annotated[int, Field(ge=1)] = 60
    space: Mapping[str, RangeSettings] = field(default_factory=dict)
    stages: tuple[StageSettings, ...] = ()


def wrong_in(searched: RangeSettings) -> Iterator[tuple[str, str]]:
    """What no run could make right: (the key of the table, or nothing for all of it; what)."""
    if searched.choices is not None:
        yield from _wrong_choices(searched.choices)
        beside = [
            name for name in ("low", "high", "step") if getattr(searched, name) is not None
        ] + (["log"] if searched.log else [])
        if beside:
            yield beside[0], "choices are given: take this away, or them"
        return
    low, high, step = searched.low, searched.high, searched.step
    missing = [name for name in ("low", "high") if getattr(searched, name) is None]
    if missing:
        yield "", f"give it low and high, or choices ({' and '.join(missing)} missing)"
        return
    assert low is not None and high is not None
    infinite = [
        name for name in ("low", "high", "step") if not math.isfinite(getattr(searched, name) or 0)
    ]
    if infinite:
        yield infinite[0], f"{shown(getattr(searched, infinite[0]))} is not a finite number"
        return
    if low > high:
        yield "low", f"{shown(low)} is more than high, which is {shown(high)}"
        return
    if searched.log and low <= 0:
        yield "low", f"{shown(low)}: a logarithmic scale needs more than 0"
    if step is None:
        return
    if searched.log:
        yield "step", "a logarithmic scale takes no steps"
    elif step <= 0:
        yield "step", f"{shown(step)} is no step: it must be more than 0"
    elif not _fits(low, high, step):
        yield "step", f"steps of {shown(step)} from {shown(low)} do not meet {shown(high)}"


def _wrong_choices(choices: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    if not choices:
        yield "choices", "there is nothing to choose from"
    for choice in choices:
        if not isinstance(choice, (str, int, float, bool)):
            yield "choices", f"{shown(choice)}: a choice is text, a number, true or false"
        elif choices.count(choice) > 1:
            yield "choices", f"{shown(choice)} is there twice"
            return


def _fits(low: float, high: float, step: float) -> bool:
    """Whether high is a whole number of steps away, as near as its digits can say."""
    steps = (high - low) / step
    return math.isclose(steps, round(steps), rel_tol=1e-9, abs_tol=1e-9)
