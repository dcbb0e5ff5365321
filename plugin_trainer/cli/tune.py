"""`ptrain tune`: search for settings with many runs, and say which were the best."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING

import click

from plugin_trainer.cli.options import configured, is_trusted, what_to_run
from plugin_trainer.cli.outlasting import outlasting_readers
from plugin_trainer.cli.printing import echo
from plugin_trainer.errors import PtrainError, SettingsError
from plugin_trainer.settings.toml_lines import split_key

if TYPE_CHECKING:
    from plugin_trainer.configuration import Configuration
    from plugin_trainer.tuning.beginning import OpenStudy
    from plugin_trainer.tuning.studies import Stage, Study

MOST_SHOWN = 10
"""So many trials the table at the end has."""


@click.command()
@what_to_run
@click.option(
    "--space",
    default="",
    metavar="NAME",
    help="A search space that a plugin ships; its default one if nothing else says what to search.",
)
@click.option(
    "--study",
    "name",
    default="",
    metavar="NAME",
    help="The study to begin or to go on with, under studies/. Left out, a new one is made.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many trials in all, those of earlier calls too.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many processes work on trials.",
)
@click.option(
    "--storage",
    default="",
    envvar="PTRAIN_STORAGE",
    metavar="URL",
    help="The database, as Optuna has it; a SQLite file in the study's folder by default. "
    "PTRAIN_STORAGE says it too, and hides a password from other users.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["plugins", "packages", "code", "content"]),
    help="What may differ from what a killed trial was begun with.",
)
@click.option(
    "--restart-lost",
    is_flag=True,
    help="Begin killed trials anew whose run folder is on another machine.",
)
@click.option("--worker", type=int, hidden=True)
@click.option("--failed-before", type=int, hidden=True)
@outlasting_readers()
def tune(
    run_file: str | None,
    plugins: tuple[str, ...],
    assignments: tuple[str, ...],
    space: str,
    name: str,
    trials: int | None,
    workers: int,
    storage: str,
    allow: tuple[str, ...],
    restart_lost: bool,
    worker: int | None,
    failed_before: int | None,
) -> int:
    """Search for settings: many runs of one run file, each with values of its own.

    What to search stands in the table [tune] of RUN.toml, or in a search space that a plugin ships.
    The same command goes on with what is missing after a kill; on other machines it joins in.
    """
    from plugin_trainer.cli.config_check import problems_in
    from plugin_trainer.tuning.beginning import open_for_work
    from plugin_trainer.tuning.search import GAVE_UP, search
    from plugin_trainer.tuning.storage import import_optuna
    from plugin_trainer.tuning.worker import GivenUp, Manner, work

    import_optuna()
    manner = Manner(
        allow=allow, restart_lost=restart_lost, failed=failed_before, check=problems_in, say=_say
    )
    if worker is not None:
        _stop_without_parent()
        study = open_for_work(name, storage=storage, trust=is_trusted())
        try:
            stopped = work(study, worker, manner)
        except GivenUp:
            return GAVE_UP  # who started this process says why
        return 128 + stopped if stopped else 0
    if run_file is None and not (plugins or assignments or space):
        if not name:
            raise PtrainError(
                "nothing says what to search",
                hint="name a run file, a plugin with --plugin NAME, or a study with --study NAME",
            )
        study = open_for_work(name, storage=storage, trust=is_trusted())
    else:
        study = _from_sources(run_file, plugins, assignments, space, name=name, storage=storage)
    _say(f"study {study.name} in {study.folder}")
    stopped = search(study, manner, workers=workers, trials=trials)
    in_vain = _conclude(study.read(), stopped=bool(stopped))
    return 128 + stopped if stopped else int(in_vain)


def _from_sources(
    run_file: str | None,
    plugins: tuple[str, ...],
    assignments: tuple[str, ...],
    space: str,
    *,
    name: str,
    storage: str,
) -> OpenStudy:
    """The study that the sources say, once everything about them is found right."""
    from plugin_trainer.cli.config_check import problems_in
    from plugin_trainer.run_folder import new_folder
    from plugin_trainer.tuning.beginning import open_for_work
    from plugin_trainer.tuning.checking import problems_in_tuning
    from plugin_trainer.tuning.studies import SETTINGS, STUDIES

    sources = partial(configured, run_file, plugins, assignments, space=space)
    configuration = sources()
    problems = problems_in(configuration) or problems_in_tuning(
        configuration, sources, more=problems_in
    )
    if problems:
        raise SettingsError(problems)
    for notice in configuration.catalog.notices:
        _say(notice)
    tune = configuration.settings.tune
    for key in tune.space if tune is not None else ():
        if configuration.origins.get(split_key(key)) == "--set":
            _say(f"{key} is searched: what --set gives it has no effect")
    made = None if name else new_folder(_owner(configuration), under=STUDIES)
    try:
        return open_for_work(
            name or (made.name if made else ""),
            storage=storage,
            configuration=configuration,
            trust=is_trusted(),
        )
    finally:
        if made is not None and not (made / SETTINGS).is_file():
            shutil.rmtree(made, ignore_errors=True)  # nothing was begun in it


def _owner(configuration: Configuration) -> str:
    offer = configuration.model.offer if configuration.model else None
    return (offer.owner or offer.spec.name.partition(":")[2]) if offer else "study"


def _stop_without_parent() -> None:
    """Stop as by SIGTERM once the process that started this one is gone: it holds the other end."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be in the way of an exit
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _say(line: str) -> None:
    """A line for the user; of several workers each comes out whole."""
    echo(line, err=True)


def _conclude(study: Study, *, stopped: bool) -> bool:
    """Print the best trials, how far it came, and what to do next; whether all trials failed."""
    from plugin_trainer.cli.trials import best_first, trials_table
    from plugin_trainer.tuning.studies import counts, write_best

    for stage in study.stages:
        if stage.optuna is None:
            continue
        shown = best_first(stage)
        echo(f"\n{_title(study, stage)}")
        if shown:
            echo(trials_table(stage, shown[:MOST_SHOWN]))
        if len(shown) > MOST_SHOWN:
            echo(f"and {len(shown) - MOST_SHOWN} more: ptrain study show {study.name}")
    best = write_best(study)
    echo()
    left = any(not stage.is_done for stage in study.stages)
    if stopped or left:
        echo(f"  go on with it:   ptrain tune --study {study.name}")
    if best is not None:
        echo(f"  see the winner:  ptrain study best {study.name}")
        echo(f"  train with it:   ptrain run {best}")
    elif not left:
        reasons = [trial.reason for stage in study.stages for trial in stage.trials if trial.reason]
        of = ", ".join(
            f"{number} {state}" for state, number in counts(study.stages[-1].trials).items()
        )
        echo(f"  no trial has finished ({of}); the last one: {reasons[-1] if reasons else ''}")
    return best is None and not left


def _title(study: Study, stage: Stage) -> str:
    from plugin_trainer.tuning.studies import counts

    of = f", stage {stage.name}" if stage.name else ""
    states = ", ".join(f"{number} {state}" for state, number in counts(stage.trials).items())
    return f"study {study.name}{of}: {states}, of {stage.total}"
