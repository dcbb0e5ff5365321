"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from plugin_trainer.configuration import Configuration
    from plugin_trainer.settings.layers import Layer

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "json_", is_flag=True, help="Print JSON.")

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key of the run file: --set optimizer.learning_rate=1e-4.",
)


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="A plugin that takes part: a name, a ./path or a module.",
)

run_file_argument = click.argument("run_file", required=False, metavar="[RUN.toml]")


def what_to_run(command: Command) -> Command:
    """RUN.toml, --plugin and --set: the three ways to say what a run is."""
    for option in (trust_option, set_option, plugin_option, run_file_argument):
        command = option(command)
    return command


_TRUST = "plugin_trainer.trust"


def _keep_trust(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_TRUST] = value


trust_option = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=_keep_trust,
    help="Load the code that a run folder of somebody else's names.",
)


def is_trusted() -> bool:
    """Whether --trust was typed."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_TRUST))


exit_option = click.option(
    "--exit",
    "exit_",
    metavar="WHEN",
    help="Leave early: off, lossless, a promise such as 1%, or a level.",
)


def which_weights(command: Command) -> Command:
    """--checkpoint and --weights: which of a run's weights to use."""
    for option in (
        click.option(
            "--weights",
            type=click.Choice(["raw", "ema"]),
            default="raw",
            show_default=True,
            help="The weight set.",
        ),
        click.option(
            "--checkpoint",
            default="",
            metavar="WHICH",
            help="best, last or step-N; best if there is one, by default.",
        ),
    ):
        command = option(command)
    return command


def configured(
    run_file: str | None,
    plugins: tuple[str, ...],
    assignments: tuple[str, ...],
    *,
    space: str | None = None,
    over: Sequence[Layer] = (),
) -> Configuration:
    """The configuration that the three say together. Raises PtrainError.

    space, over  as `configure` takes them
    """
    from plugin_trainer.configuration import configure, read_run_file
    from plugin_trainer.configuration.admission import admit
    from plugin_trainer.settings.layers import from_assignments

    layer = read_run_file(run_file) if run_file else None
    overrides = from_assignments(assignments) if assignments else None
    folder = Path(run_file).parent if run_file and Path(run_file).name == "run.toml" else None
    # Of a folder with nothing else in it, the run file is the user's own as any other.
    beside = ("run.json", "checkpoints", "assets")
    if layer and folder and any((folder / name).exists() for name in beside):
        admit(folder, layer, overrides=overrides, plugins=plugins, trust=is_trusted())
    return configure(layer, plugins=plugins, overrides=overrides, space=space, over=over)
