"""The `ptrain` command: a table of commands, each imported when it is called, and one way to fail.

`ptrain --help` lists this package's commands from the table and those of plugins from their
metadata: it imports neither torch nor any plugin.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from plugin_trainer import __version__
from plugin_trainer.cli.interrupts import noting_ctrl_c
from plugin_trainer.cli.launching import refuse_several, speaks
from plugin_trainer.cli.printing import echo, print_error, printable, shortened
from plugin_trainer.errors import PluginBroken, PluginDuplicate, PtrainError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from plugin_trainer.registry.discovery import InstalledCommand

# name -> (where it is, one line of help). The names are reserved: registry/names.py.
COMMANDS = {
    "run": ("plugin_trainer.cli.run:run", "Train a model."),
    "evaluate": ("plugin_trainer.cli.evaluate:evaluate", "Score a run's weights on a split."),
    "predict": (
        "plugin_trainer.cli.predict:predict",
        "Answer for new inputs with a run's weights.",
    ),
    "calibrate": (
        "plugin_trainer.cli.calibrate:calibrate",
        "Certify how early a run's rows may leave.",
    ),
    "plugins": ("plugin_trainer.cli.plugins:plugins", "List, check and start plugins."),
    "config": ("plugin_trainer.cli.config:config", "Show, check and explain settings."),
    "runs": ("plugin_trainer.cli.runs:runs", "List and show runs."),
    "tune": ("plugin_trainer.cli.tune:tune", "Search for settings with Optuna."),
    "study": ("plugin_trainer.cli.study:study", "List studies; show one, and its best trial."),
    "models": ("plugin_trainer.cli.models:models", "Keep trained models: names and versions."),
    "kernels": ("plugin_trainer.cli.kernels:kernels", "Show, build and time the native kernels."),
}

_IN_ONE_PROCESS = ("evaluate", "predict", "calibrate", "tune")
"""Commands that work, and would do all of it in each of several processes."""

# What is said beside the system's own words for what it refused.
_SURROUNDINGS = {
    errno.ENOSPC: "make room where it was to be written, or write elsewhere",
    errno.EDQUOT: "make room within your quota, or write elsewhere",
    errno.EFBIG: "raise the limit of a file's size: ulimit -f",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "ask for the permission, or use another path",
    errno.EROFS: "write elsewhere",
}

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class LazyGroup(click.Group):
    """Commands that are imported when they are called.

    click's own help imports every command to ask for its one line; here the line is data.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """This package's commands, then those of plugins."""
        return [*COMMANDS, *dict.fromkeys(command.name for command in _plugin_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        found = [command for command in _plugin_commands() if command.name == cmd_name]
        return _import_plugin_command(found) if found else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed, or say which was probably meant."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from plugin_trainer.registry.names import closest

            near = closest(args[0], self.list_commands(ctx))
            message = f"no such command '{args[0]}'"
            raise click.UsageError(f"{message}; did you mean '{near}'?" if near else message, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' lines of help, from the table and from metadata."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        if commands := _plugin_commands():
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(command.name, _from(command)) for command in commands])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing any."""
        from click.shell_completion import CompletionItem

        lines = {name: line for name, (_, line) in COMMANDS.items()}
        lines |= {command.name: _from(command) for command in _plugin_commands()}
        return [
            CompletionItem(name, help=line)
            for name, line in lines.items()
            if name.startswith(incomplete)
        ]


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ptrain", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error (any position).")
@click.pass_context
def ptrain(ctx: click.Context, debug: bool) -> None:
    """Train PyTorch models whose parts are plugins."""
    if ctx.invoked_subcommand is None:
        echo(ctx.get_help())
    elif ctx.invoked_subcommand in _IN_ONE_PROCESS:
        refuse_several(ctx.invoked_subcommand)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 training failed or a mistake in the program, 2 the user must change something, 130
    interrupted. A command may return its own exit code.
    """
    typed = list(sys.argv[1:] if args is None else args)
    debug = _take_debug(typed) or os.environ.get("PTRAIN_DEBUG", "") not in ("", "0")
    if sys.stdout is None:  # Python's, where it was closed before the start
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    with noting_ctrl_c() as ctrl_c:
        try:
            result = ptrain.main(typed, prog_name="ptrain", standalone_mode=False)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except (click.Abort, KeyboardInterrupt):
            return _report_interruption()
        except Exception as error:
            # What a library in another language made of Ctrl-C may be any error at all.
            if ctrl_c.came or "KeyboardInterrupt" in str(error):
                return _report_interruption()
            return _report(error, debug=debug)


def _report_interruption() -> int:
    print_error("interrupted")
    return INTERRUPTED


def _report(error: Exception, *, debug: bool) -> int:
    if not speaks() and (isinstance(error, click.ClickException) or getattr(error, "told", False)):
        if debug:
            traceback.print_exc()
        return getattr(error, "exit_code", 1)
    if isinstance(error, click.ClickException):
        return _report_usage(error)
    if isinstance(error, BrokenPipeError):
        _close_quietly()
        return 1
    if isinstance(error, PtrainError):
        if debug:
            traceback.print_exc()
        print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        if debug:
            traceback.print_exc()
        return _report_surroundings(error)
    return _report_internal(error, debug=debug)


def _report_surroundings(error: OSError) -> int:
    """What the machine refused: not ours, and not the user's to report."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    print_error(
        ": ".join(filter(None, (place, str(error.strerror).lower()))),
        [_SURROUNDINGS[error.errno or 0]],
    )
    try:
        sys.stdout.flush()
    except OSError:  # Python would try once more at exit
        _close_quietly()
    return 2


def _take_debug(args: list[str]) -> bool:
    """Remove --debug, which may stand before or after the command's name; not behind `--`."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    found = len(kept) < end
    args[:end] = kept
    return found


def _report_usage(error: click.ClickException) -> int:
    hint = []
    context = getattr(error, "ctx", None)
    of_ptrain = isinstance(getattr(context, "command", None), LazyGroup)
    if isinstance(error, click.NoSuchOption) and of_ptrain:
        hint.append(
            f"options of a command stand behind its name: ptrain COMMAND {error.option_name}"
        )
    if context is not None:
        hint.append(f"see: {context.command_path} --help")
    message = error.format_message().rstrip(".")
    print_error(message[:1].lower() + message[1:], hint)
    return error.exit_code


def _report_internal(error: Exception, *, debug: bool) -> int:
    from plugin_trainer.registry.blame import in_words, raised_at

    if debug:
        traceback.print_exc()
    what = shortened(printable(in_words(error)))
    echo(f"internal error: {what} at {raised_at(error)}", err=True)
    echo("  this is a mistake in ptrain or in a plugin, not in what you typed", err=True)
    if not debug:
        echo("  please report it with the output of the same command and --debug", err=True)
    return 1


def _close_quietly() -> None:
    """Whoever read our output has gone; keep Python from complaining about it once more at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())


# Commands of plugins.


def _plugin_commands() -> list[InstalledCommand]:
    """Those whose names this package does not use itself."""
    from plugin_trainer.registry.discovery import installed_commands
    from plugin_trainer.registry.names import RESERVED_NAMES

    taken = RESERVED_NAMES | set(COMMANDS)
    return [command for command in installed_commands() if command.name not in taken]


def _from(command: InstalledCommand) -> str:
    return f"from {command.distribution} {command.version}"


def _import_plugin_command(found: Sequence[InstalledCommand]) -> click.Command:
    from plugin_trainer.registry.building import import_target

    name = found[0].name
    if len(found) > 1:
        raise PluginDuplicate(
            f"two installed packages claim the command '{name}'",
            plugin=name,
            hint=[*_packages(found), "uninstall one"],
        )
    command: Any = import_target(found[0].target, plugin=name)
    if not isinstance(command, click.Command):
        raise PluginBroken(
            f"plugin '{name}' names {found[0].target}, which is not a click command", plugin=name
        )
    return command


def _packages(found: Iterable[InstalledCommand]) -> list[str]:
    return [f"{command.distribution} {command.version}" for command in found]
