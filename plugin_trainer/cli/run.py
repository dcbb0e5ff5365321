"""`ptrain run`: train a model, show how it goes, and say what came of it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plugin_trainer.cli.launching import is_launched, launch, speaks
from plugin_trainer.cli.options import configured, what_to_run
from plugin_trainer.cli.outlasting import outlasting_readers
from plugin_trainer.cli.printing import echo, facts, table
from plugin_trainer.errors import RunFolderError, SettingsError
from plugin_trainer.quoting import counted

if TYPE_CHECKING:
    from plugin_trainer.configuration import Configuration
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run


MANY_TASKS = 12
"""Of more tasks than these a start does not list each."""


@click.command()
@what_to_run
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder. Left out, a new one is made under runs/.",
)
@click.option(
    "--resume",
    default="never",
    show_default=True,
    metavar="never|auto|RUN",
    help="auto resumes the run in --out, or starts it; a run folder resumes that run.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Delete the run that --out holds, and start anew.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="KEY",
    help="A setting that may differ from what the run was started with.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train in N processes of this machine, which torchrun starts.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Two steps, one evaluation and one checkpoint, in a folder that is thrown away.",
)
def run(
    run_file: str | None,
    plugins: tuple[str, ...],
    assignments: tuple[str, ...],
    out: Path | None,
    resume: str,
    overwrite: bool,
    allow: tuple[str, ...],
    processes: int | None,
    dry_run: bool,
) -> int:
    """Train a model.

    What to train comes from RUN.toml, from a plugin's own recipe (--plugin NAME), or from both,
    with --set over them. The address of a recipe, such as dactbert/exits, may stand for RUN.toml.
    """
    asked = _Asked(run_file, plugins, assignments, out, resume, overwrite, allow, dry_run)
    with outlasting_readers():
        if is_launched():
            return _in_one_of_several(asked)
        if processes is None or processes == 1:
            return _train(asked)
        _configured(asked)  # a mistake in what was typed is told once, before anything starts
        return launch(asked.arguments(), processes=processes)


@dataclass(frozen=True)
class _Asked:
    """What was typed."""

    run_file: str | None
    plugins: tuple[str, ...]
    assignments: tuple[str, ...]
    out: Path | None
    resume: str
    overwrite: bool
    allow: tuple[str, ...]
    dry_run: bool

    def arguments(self) -> list[str]:
        """The same, to be typed again."""
        repeated = (
            ("--plugin", self.plugins),
            ("--set", self.assignments),
            ("--allow", self.allow),
            ("--out", [self.out] if self.out is not None else []),
            ("--resume", [self.resume]),
        )
        options = [f"{name}={value}" for name, values in repeated for value in values]
        flags = {"--overwrite": self.overwrite, "--dry-run": self.dry_run}
        options += [flag for flag, is_set in flags.items() if is_set]
        files = ["--", self.run_file] if self.run_file is not None else []
        return ["run", *options, *files]


def _in_one_of_several(asked: _Asked) -> int:
    """The same run in one of the processes that torchrun has started: the first one speaks."""
    from plugin_trainer.training.distributed.init import join, leave, restarts

    world = join()
    try:
        with redirect_stdout(sys.stdout if world.is_first else StringIO()), world.telling():
            if restarts() and asked.resume == "never":
                asked = _asked_again(asked)
            return _train(asked)
    finally:
        leave()


def _asked_again(asked: _Asked) -> _Asked:
    """What was asked, of processes that are started again: to go on with what they have begun."""
    named = asked.out or any(text.partition("=")[0] == "name" for text in asked.assignments)
    folder = asked.out if named else _begun_by_this_launch()
    again = replace(asked, resume="auto", overwrite=False, out=folder)
    return again if named or folder else asked


def _begun_by_this_launch() -> Path | None:
    """The run that the same launch began, before its processes were started again."""
    from plugin_trainer.files import read_object
    from plugin_trainer.run_folder import list_runs
    from plugin_trainer.training.distributed.init import launch_id

    for folder in reversed(list_runs()):
        if launch_id() and read_object(folder / "run.json").get("launch") == launch_id():
            return folder
    return None


def _configured(asked: _Asked) -> tuple[_Asked, Configuration]:
    """What to run, checked; and what was asked, the run to go on with found."""
    if asked.resume not in ("never", "auto"):
        out = _run_to_resume(asked.resume, asked.out)
        run_file = asked.run_file
        if run_file is None:
            run_file = str(out / "run.toml")
            _refuse_run_of_fit(out)
        asked = replace(asked, out=out, resume="auto", run_file=run_file)
    configuration = configured(asked.run_file, asked.plugins, asked.assignments)

    from plugin_trainer.cli.config_check import problems_in

    if problems := problems_in(configuration):
        raise SettingsError(problems)
    return asked, configuration


def _refuse_run_of_fit(folder: Path) -> None:
    from plugin_trainer.settings.layers import read_toml
    from plugin_trainer.training.setup.of_fit import refuse_run_of_fit

    refuse_run_of_fit(folder, read_toml(folder / "run.toml"))


def _train(asked: _Asked) -> int:
    asked, configuration = _configured(asked)

    from plugin_trainer.training.execution import execute
    from plugin_trainer.training.setup.assemble import AlreadyDone, assemble

    for notice in configuration.catalog.notices:
        _say(notice)
    if asked.dry_run:
        return _dry_run(configuration)
    try:
        made = assemble(
            configuration,
            out=asked.out,
            resume="auto" if asked.resume == "auto" else "never",
            overwrite=asked.overwrite,
            allow=asked.allow,
            notify=_say,
        )
    except AlreadyDone as done:
        about = done.about
        echo(f"{done.folder} is {about['status']} already: {about['reason']}")
        if about["status"] == "finished":
            echo("  to train it for longer: --set length=... --allow length")
        else:
            echo("  to go on: change what stopped it with --set, and name that with --allow")
        return 0
    _introduce(made)
    result = execute(made)
    if made.forward.not_passed:
        _say(f"not passed to the model: {', '.join(sorted(made.forward.not_passed))}")
    _conclude(result, can_predict=hasattr(made.data, "predict"), processes=made.world.size)
    return 128 + result.signal if result.signal else 0


def _dry_run(configuration: Configuration) -> int:
    from plugin_trainer.training.setup.dry_run import dry_run

    result = dry_run(configuration)
    if result.signal:
        return 128 + result.signal
    settings = configuration.settings
    echo(f"the dry run went well: {settings.model} on {settings.data}, {result.seconds:.0f} s")
    echo(f"  {counted(result.step, 'step')}, an evaluation and a checkpoint; nothing was kept")
    return 0


def _run_to_resume(resume: str, out: Path | None) -> Path:
    from plugin_trainer.run_folder import find_run

    folder = find_run(resume)
    if out is not None and out.resolve() != folder.resolve():
        raise RunFolderError(
            f"--resume names {folder} and --out names {out}", hint="a run goes on in its own folder"
        )
    return folder


def _say(line: str) -> None:
    """A line for the user, as it is: what it names can be found and copied."""
    if not speaks():
        return
    echo(f"  {line}", err=True)


def _tell(label: str, text: str) -> None:
    """A fact of the run, wrapped beside its label."""
    if not speaks():
        return
    echo(facts([(f"{label:<7}", text)]), err=True)


def _introduce(run: Run) -> None:
    """What is about to be trained, and where."""
    settings = run.settings
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if speaks():
        echo(f"{settings.model} on {settings.data}", err=True)
    _say(f"folder   {run.folder}")
    several = f", {run.world.size} processes ({run.together.name})" if run.together else ""
    _tell("device", f"{run.device}, {settings.precision}{several}")
    _tell("model", f"{_counted(trainable)} trainable parameters")
    if hasattr(run.data, "describe"):
        _tell("data", f"{run.data.describe()}")
    if run.stream.quotas:
        _tell("mixture", f"{settings.mixture.strategy}, {_shares(run.stream.quotas)}")
    if "val" not in run.loaders:
        _tell("", "no validation data: nothing is evaluated, and no checkpoint is the best")
    in_steps = "" if settings.length.unit == "steps" else f", {run.plan.total_steps} steps"
    _tell("length", f"{settings.length}{in_steps}")


def _shares(quotas: Mapping[str, int]) -> str:
    """What each task gives to a mixed epoch; of many tasks only how unlike that is."""
    if len(quotas) > MANY_TASKS:
        least, most = min(quotas.values()), max(quotas.values())
        return f"{len(quotas)} tasks of {least} to {most} batches an epoch"
    shares = ", ".join(f"{task} {quota}" for task, quota in quotas.items())
    return f"batches an epoch: {shares}"


def _counted(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _conclude(result: Result, *, can_predict: bool, processes: int) -> None:
    """How it ended: the last evaluation, what callbacks report, what to do next."""
    made = f"{counted(result.step, 'step')}, {result.seconds:.0f} s"
    echo(f"\n{result.status}: {result.reason} ({made})")
    if result.metrics:
        echo("\n" + metrics_table(result.metrics))
    for best in result.best.values():
        echo(f"best {best.watch} {best.value:.4g} at step {best.step}: {best.checkpoint}")
    for title, text in result.reports.items():
        echo(f"\n{title}\n{text}")
    echo(f"\nthe run is in {result.folder}")
    for line in _next_steps(result, can_predict=can_predict, processes=processes):
        echo(f"  {line}")


def _next_steps(result: Result, *, can_predict: bool, processes: int) -> list[str]:
    if result.status == "interrupted":
        several = f" --processes {processes}" if processes > 1 else ""
        return [f"go on with it:   {_program('ptrain')} run --resume {result.folder}{several}"]
    steps = []
    if result.metrics:
        steps.append(f"score it:        {_program('ptrain')} evaluate {result.folder}")
    if can_predict:
        steps.append(f"use it:          {_program('ptrain')} predict {result.folder} INPUT.txt")
    if (result.folder / "tensorboard").is_dir():
        steps.append(f"see its curves:  {_program('tensorboard')} --logdir {result.folder}")
    return steps


def _program(name: str) -> str:
    """How to type a program of this environment, which may be one under here that is not active."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) is None and beside.is_file() and beside.is_relative_to(Path.cwd()):
        return str(beside.relative_to(Path.cwd()))
    return name


def metrics_table(metrics: Mapping[str, float]) -> str:
    """One row a metric, one column a weight set: val/... and val_ema/... side by side."""
    rows: dict[str, dict[str, float]] = {}
    for full_name, value in metrics.items():
        prefix, _, name = full_name.partition("/")
        split, _, weights = prefix.partition("_")
        rows.setdefault(f"{split}/{name}", {})[weights or "raw"] = value
    columns = list(dict.fromkeys(weights for row in rows.values() for weights in row))
    cells = [
        [name, *(f"{row[weights]:.4f}" if weights in row else "" for weights in columns)]
        for name, row in rows.items()
    ]
    return table(cells, ["metric", *columns])
