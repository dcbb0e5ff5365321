"""`ptrain study`: the studies there are, how each goes, and the settings that won."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plugin_trainer.cli.options import json_option
from plugin_trainer.cli.printing import echo, emit_json, facts, table

if TYPE_CHECKING:
    from plugin_trainer.tuning.objectives import Objective
    from plugin_trainer.tuning.studies import Stage, Study, Trial

Command = TypeVar("Command", bound=Callable[..., Any])

_DONE = ("finished", "pruned", "failed")
"""What counts towards the trials that a study is to have."""


def storage_option(command: Command) -> Command:
    """--storage: which database."""
    return click.option(
        "--storage",
        default="",
        envvar="PTRAIN_STORAGE",
        metavar="URL",
        help="The studies' database; PTRAIN_STORAGE or else study.db in the study's folder, "
        "by default.",
    )(command)


stage_option = click.option(
    "--stage", metavar="NAME", help="Of a staged study; the last that has a winner, by default."
)


@click.group(invoke_without_command=True)
@storage_option
@json_option
@click.pass_context
def study(ctx: click.Context, storage: str, json_: bool) -> None:
    """Look into studies, which `ptrain tune` makes. Without a command: list.

    A STUDY is a name under studies/, or a study's folder.
    """
    if ctx.invoked_subcommand is None:
        _print_list(storage, json_=json_)
    else:
        ctx.default_map = {ctx.invoked_subcommand: {"storage": storage}}


@study.command("list")
@storage_option
@json_option
def list_(storage: str, json_: bool) -> None:
    """List the studies, with how far each is."""
    _print_list(storage, json_=json_)


@study.command()
@click.argument("study")
@storage_option
@json_option
def show(study: str, storage: str, json_: bool) -> None:
    """Show the trials of the study STUDY, stage by stage."""
    from plugin_trainer.tuning.studies import open_study

    opened = open_study(study, storage=storage)
    if json_:
        emit_json(_as_json(opened))
        return
    echo(f"{opened.name}\n")
    echo(facts(_facts(opened)))
    for stage in opened.stages:
        echo("\n" + "\n\n".join(_about_stage(opened, stage)))
    if steps := _next_steps(opened):
        echo()
    for step in steps:
        echo(f"  {step}")


@study.command()
@click.argument("study")
@click.option("--trial", "number", type=int, metavar="N", help="Another trial than the winner.")
@stage_option
@click.option("--no-pictures", is_flag=True, help="Draw nothing.")
@storage_option
@json_option
def best(
    study: str,
    number: int | None,
    stage: str | None,
    no_pictures: bool,
    storage: str,
    json_: bool,
) -> None:
    """Print the winner of the study STUDY as --set lines.

    Writes it as a run file, best.toml, and draws how the study went, into the study's folder. Of
    two objectives it shows the trials that no other beats in both; --trial chooses one of them.
    """
    from plugin_trainer.cli.trials import trials_table
    from plugin_trainer.tuning.studies import assignments, open_study, write_best

    opened = open_study(study, storage=storage)
    of = _stage_of(opened, stage)
    chosen = _chosen(opened, of, number)
    params = {**of.start, **chosen.params}
    run_file = write_best(opened, stage=of, trial=chosen)
    pictures, notes = ([], []) if no_pictures else _draw(of)
    if json_:
        emit_json(
            {
                "study": opened.name,
                "stage": of.name,
                **_trial_as_json(chosen, of),
                "set": assignments(params),
                "run_file": run_file,
                "pictures": pictures,
                "front": [trial.number for trial in of.front()],
            }
        )
        return
    if len(of.objectives) > 1:
        echo(trials_table(of, of.front()) + "\n")
    echo(_introduction(opened, of, chosen) + "\n")
    echo(_as_options(assignments(params)))
    echo()
    if run_file is not None:
        echo(f"run file  {_typed(run_file)}")
    for path in pictures:
        echo(f"picture   {_typed(path)}")
    for line in notes:
        echo(f"          {line}")
    if run_file is not None:
        echo(f"\ntrain it: ptrain run {shlex.quote(_typed(run_file))}")


# ------------------------------------------------------------------------------------------- list


def _print_list(storage: str, *, json_: bool) -> None:
    from plugin_trainer.errors import PtrainError
    from plugin_trainer.tuning.studies import list_studies, open_study

    found: list[dict[str, Any]] = []
    for name in list_studies(storage):
        try:
            found.append(_summary(open_study(name, storage=storage)))
        except PtrainError as error:  # one that cannot be read does not hide the others
            found.append({"name": name, "error": error.message})
    if json_:
        emit_json(found)
        return
    if not found:
        where = "the database" if storage else "studies/"
        echo(f"there is no study in {where}; start one: ptrain tune --plugin NAME")
        return
    rows = [_row(summary) for summary in found]
    echo(table(rows, ("study", "trials", "now", "best")))


def _summary(study: Study) -> dict[str, Any]:
    from plugin_trainer.tuning.studies import counts

    return {
        "name": study.name,
        "folder": str(study.folder),
        "stages": [
            {
                "name": stage.name,
                "total": stage.total,
                "trials": counts(stage.trials),
                "done": stage.is_done,
                "best": None
                if (winner := stage.winner()) is None
                else {"trial": winner.number, "values": _values(winner, stage)},
            }
            for stage in study.stages
        ],
    }


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in summary:
        return (summary["name"], "", "", summary["error"])
    begun = [stage for stage in summary["stages"] if stage["trials"]]
    stage = begun[-1] if begun else summary["stages"][0]  # of a staged study, the one it is at
    ended = sum(number for state, number in stage["trials"].items() if state in _DONE)
    running = stage["trials"].get("running", 0)
    if running:
        now = f"{running} running"
    else:
        done = "done" if stage["best"] else "no result"  # all its trials failed or were pruned
        now = done if all(its["done"] for its in summary["stages"]) else "stopped"
    best = ""
    if stage["best"] is not None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in stage["best"]["values"].items())
        best = f"{values} (trial {stage['best']['trial']})"
    place = f" of {stage['name']}" if stage["name"] else ""
    return (summary["name"], f"{ended}/{stage['total']}{place}", now, best)


# ------------------------------------------------------------------------------------------- show


def _facts(study: Study) -> list[tuple[str, str]]:
    settings = study.settings
    tune = settings.get("tune", {})
    return [
        ("folder", _typed(study.folder) if study.folder.is_dir() else ""),
        ("database", study.storage),
        ("trains", f"{settings.get('model', '?')} on {settings.get('data', '?')}"),
        ("length", str(settings.get("length", ""))),
        ("sampler", str(tune.get("sampler", ""))),
        ("pruner", str(tune.get("pruner", ""))),
    ]


def _about_stage(study: Study, stage: Stage) -> list[str]:
    """A stage in paragraphs: what it looks for and how far it is, its trials, why some failed."""
    from plugin_trainer.cli.trials import trials_table

    about = [("objective", _in_words(objective)) for objective in stage.objectives]
    if len(stage.objectives) > 1:
        about.append(("winner by", stage.winner_by))
    about.append(("progress", _progress(stage)))
    title = [f"stage {stage.name}"] if stage.name else []
    parts = ["\n".join([*title, facts(about)])]
    if begun := [trial for trial in stage.trials if trial.state != "waiting"]:
        parts.append(trials_table(stage, begun))
    if failed := [trial for trial in stage.trials if trial.state == "failed"]:
        reasons = [(f"trial {trial.number} failed", trial.reason) for trial in failed]
        parts.append(facts(reasons))
    winner = stage.winner()
    if winner is not None:
        parts.append(f"the winner: trial {winner.number}, {_named_values(winner, stage)}")
    return parts


def _next_steps(study: Study) -> list[str]:
    name = shlex.quote(study.name)
    steps = []
    is_worked_on = any(trial.state == "running" for its in study.stages for trial in its.trials)
    if not is_worked_on and not all(stage.is_done for stage in study.stages):
        steps.append(f"go on with it:   ptrain tune --study {name}")
    if any(stage.winner() is not None for stage in study.stages):
        steps.append(f"see the winner:  ptrain study best {name}")
    return steps


def _in_words(objective: Objective) -> str:
    taken = {
        "best": "the best of a trial's evaluations",
        "last": "a trial's last evaluation",
        "mean": "the mean of a trial's evaluations",
    }
    better = "lower" if objective.mode == "min" else "higher"
    return f"{objective.metric}, {better} is better, {taken[objective.take]}"


def _progress(stage: Stage) -> str:
    from plugin_trainer.tuning.studies import counts

    found = counts(stage.trials)
    ended = sum(found.get(state, 0) for state in _DONE)
    kinds = ", ".join(f"{number} {state}" for state, number in found.items())
    return f"{ended} of {stage.total} trials are done" + (f" ({kinds})" if kinds else "")


# ------------------------------------------------------------------------------------------- best


def _stage_of(study: Study, name: str | None) -> Stage:
    """The stage of that name, or the last that has a winner. Raises StudyError."""
    from plugin_trainer.errors import StudyError

    if name is not None:
        for stage in study.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in study.stages if stage.name)
        raise StudyError(
            f"the study '{study.name}' has no stage '{name}'",
            hint=f"it has: {names}" if names else "it has no stages: leave --stage out",
        )
    won = [stage for stage in study.stages if stage.winner() is not None]
    return won[-1] if won else study.stages[0]


def _chosen(study: Study, stage: Stage, number: int | None) -> Trial:
    """The winner, or the finished trial of that number. Raises StudyError."""
    from plugin_trainer.errors import StudyError

    of = f"the study '{study.name}'" + (f", stage '{stage.name}'," if stage.name else "")
    finished = [trial for trial in stage.trials if trial.state == "finished"]
    winner = stage.winner()
    if winner is None:
        hint = [_progress(stage)]
        if any(trial.state == "failed" for trial in stage.trials):
            hint.append(f"why trials failed: ptrain study show {shlex.quote(study.name)}")
        else:
            hint.append("wait for one")
        raise StudyError(f"{of} has no finished trial yet", hint=hint)
    if number is None:
        return winner
    for trial in finished:
        if trial.number == number:
            return trial
    states = {trial.number: trial.state for trial in stage.trials}
    what = f"is {states[number]}" if number in states else "does not exist"
    raise StudyError(
        f"trial {number} of {of.rstrip(',')} {what}",
        hint=f"finished are: {', '.join(str(trial.number) for trial in finished)}",
    )


def _draw(stage: Stage) -> tuple[list[Path], list[str]]:
    """The pictures, or a line that says why there are none: the winner is told all the same."""
    from plugin_trainer.errors import MissingExtra
    from plugin_trainer.tuning.pictures import draw_pictures

    try:
        return draw_pictures(stage)
    except MissingExtra as error:
        return [], [error.message, *error.hint]
    except OSError as error:
        return [], [f"no pictures: {stage.folder} cannot be written: {error.strerror}"]


def _introduction(study: Study, stage: Stage, chosen: Trial) -> str:
    place = f"{study.name}, stage {stage.name}" if stage.name else study.name
    count = sum(trial.state == "finished" for trial in stage.trials)
    values = _named_values(chosen, stage)
    if chosen != stage.winner():
        lines = [f"trial {chosen.number} of {place}: {values}"]
    elif len(stage.objectives) > 1:
        lines = [
            f"trial {chosen.number} of {place}: {values}",
            f"the best {stage.winner_by} of these; another: --trial N",
        ]
    else:
        lines = [f"trial {chosen.number} of {place}: {values}, the best of {count}"]
    later = [one.name for one in study.stages if one.winner() is None]
    if later and stage.name not in later:
        lines.append(f"no trial has finished yet of: {', '.join(later)}")
    return "\n".join(lines)


def _as_options(assigned: Sequence[str]) -> str:
    """The lines to type behind a command, one to a setting."""
    return " \\\n".join(f"    --set {shlex.quote(one)}" for one in assigned)


# ------------------------------------------------------------------------------------------ words


def _typed(path: Path) -> str:
    """The path as it is typed from here."""
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)


def _values(trial: Trial, stage: Stage) -> dict[str, float]:
    names = [objective.metric for objective in stage.objectives]
    return dict(zip(names, trial.values, strict=False))


def _named_values(trial: Trial, stage: Stage) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in _values(trial, stage).items())


def _as_json(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "folder": str(study.folder),
        "storage": study.storage,
        "stages": [
            {
                "name": stage.name,
                "folder": str(stage.folder),
                "total": stage.total,
                "objectives": [
                    {"metric": one.metric, "mode": one.mode, "take": one.take}
                    for one in stage.objectives
                ],
                "trials": [_trial_as_json(trial, stage) for trial in stage.trials],
                "winner": None if (winner := stage.winner()) is None else winner.number,
                "front": [trial.number for trial in stage.front()],
            }
            for stage in study.stages
        ],
    }


def _trial_as_json(trial: Trial, stage: Stage) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "values": _values(trial, stage),
        "params": trial.params,
        "reason": trial.reason,
        "folder": None if trial.folder is None else str(trial.folder),
        "steps": trial.steps,
        "seconds": trial.seconds,
        "reports": trial.reports,
    }
