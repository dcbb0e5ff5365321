"""`ptrain runs`: the runs there are, and how each went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plugin_trainer.cli.options import json_option
from plugin_trainer.cli.printing import echo, emit_json, table
from plugin_trainer.cli.run_state import state_of


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def runs(ctx: click.Context, json_: bool) -> None:
    """List and show runs. Without a command: list."""
    if ctx.invoked_subcommand is None:
        _print_list(Path("runs"), json_=json_)


@runs.command("list")
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@json_option
def list_(folder: Path, json_: bool) -> None:
    """List the runs in FOLDER, the oldest first."""
    _print_list(folder, json_=json_)


@runs.command()
@click.argument("run")
@json_option
def show(run: str, json_: bool) -> None:
    """Show how the run RUN went: a run folder, or a name under runs/."""
    from plugin_trainer.cli.run import metrics_table
    from plugin_trainer.run_folder import find_run

    folder = find_run(run)
    about = state_of(folder)
    if json_:
        emit_json(about)
        return
    summary = _summary(folder, about)
    echo(f"{folder}\n")
    if not (summary["model"] or summary["data"]):
        summary["model"] = "given to plugin_trainer.fit"
    for name in ("status", "reason", "model", "data", "steps", "started", "ended"):
        echo(f"  {name:<8} {summary[name]}")
    plugins = [
        f"{plugin['name']} {plugin['version']}".rstrip() for plugin in about.get("plugins", [])
    ]
    echo(f"  plugins  {', '.join(plugins)}")
    echo(f"  saved    {', '.join(_checkpoints(folder)) or 'nothing'}")
    if about.get("metrics"):
        echo("\n" + metrics_table(about["metrics"]))
    for best in about.get("best", {}).values():
        echo(f"best {best['watch']} {best['value']:.4g} at step {best['step']}")


def _print_list(folder: Path, *, json_: bool) -> None:
    from plugin_trainer.run_folder import list_runs

    found = [_summary(run, state_of(run)) for run in list_runs(folder)]
    if json_:
        emit_json(found)
        return
    if not found:
        echo(f"there is no run in {folder}/; start one: ptrain run --plugin NAME")
        return
    rows = [
        (run["name"], run["status"], run["steps"], run["best"], run["started"]) for run in found
    ]
    echo(table(rows, ("run", "status", "steps", "best", "started")))


def _summary(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    from plugin_trainer.errors import PtrainError
    from plugin_trainer.settings.layers import read_toml

    try:
        settings = read_toml(folder / "run.toml").values
    except PtrainError:
        settings = {}  # a damaged run is listed with what is left of it
    best = about.get("best", {}).get("raw")
    return {
        "name": folder.name,
        "folder": str(folder),
        "status": about.get("status", "unknown"),
        "reason": about.get("reason", ""),
        "model": settings.get("model", ""),
        "data": settings.get("data", ""),
        "steps": f"{about.get('step', '?')}/{about.get('steps', '?')}",
        "best": f"{best['watch']} {best['value']:.4g}" if best else "",
        "started": about.get("started", ""),
        "ended": about.get("ended", ""),
    }


def _checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
