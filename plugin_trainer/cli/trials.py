"""Trials of a study as a table: what was tried, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from plugin_trainer.cli.printing import WIDTH, table

if TYPE_CHECKING:
    from plugin_trainer.tuning.studies import Stage, Trial


def trials_table(stage: Stage, trials: Iterable[Trial]) -> str:
    """One row a trial: number, state, the objectives' values, steps, parameters.

    Where that is too wide, the heads stand on two lines, and then all parameters in one column.
    """
    shown = list(trials)
    keys = list(dict.fromkeys(key for trial in shown for key in trial.params))
    names = short_names(keys)
    left = [
        [
            trial.number,
            trial.state,
            *(_number(value) for value in _values(trial, len(stage.objectives))),
            "" if trial.steps is None else trial.steps,
        ]
        for trial in shown
    ]
    heads = ["trial", "state", *(its.metric for its in stage.objectives), "steps"]
    columns = [[_number(trial.params.get(key, "")) for key in keys] for trial in shown]
    rows = [[*one, *two] for one, two in zip(left, columns, strict=True)]
    named = [*heads, *(names[key] for key in keys)]
    upper, lower = zip(*map(_in_two, named), strict=True)
    for found in (table(rows, named, width=_ANY), table([lower, *rows], upper, width=_ANY)):
        if _fits(found):
            return found
    together = [
        ", ".join(f"{names[key]} {_number(value)}" for key, value in trial.params.items())
        for trial in shown
    ]
    rows = [[*one, two] for one, two in zip(left, together, strict=True)]
    return table(rows, [*heads, "parameters"])


def _in_two(head: str) -> tuple[str, str]:
    """A name on two lines, as even as its parts allow: val/mean_ over exit_block."""
    cuts = [0, *(number for number, sign in enumerate(head, start=1) if sign in "/_.")]
    cut = min(cuts, key=lambda cut: max(cut, len(head) - cut))
    return head[:cut], head[cut:]


_ANY = 1_000_000
"""A width at which nothing is wrapped."""


def _fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= WIDTH


def best_first(stage: Stage) -> list[Trial]:
    """The trials that have ended: the front, the others that finished, the pruned, the failed."""
    by = [its.metric for its in stage.objectives].index(stage.winner_by)
    sign = 1 if stage.objectives[by].mode == "min" else -1
    front = {trial.number for trial in stage.front()} if len(stage.objectives) > 1 else set()
    order = ("finished", "pruned", "failed")

    def rank(trial: Trial) -> tuple[Any, ...]:
        value = sign * trial.values[by] if len(trial.values) > by else 0.0
        return order.index(trial.state), trial.number not in front, value, trial.number

    return sorted((trial for trial in stage.trials if trial.state in order), key=rank)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by its last part, where no other ends the same."""
    keys = list(keys)
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _values(trial: Trial, count: int) -> list[Any]:
    return [*trial.values, *[""] * (count - len(trial.values))]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
