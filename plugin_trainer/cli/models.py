"""`ptrain models`: trained models by name and version, from register to export."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plugin_trainer.cli.calibrate import Percent
from plugin_trainer.cli.options import (
    is_trusted,
    json_option,
    set_option,
    trust_option,
    which_weights,
)
from plugin_trainer.cli.printing import echo, emit_json, facts, table
from plugin_trainer.quoting import counted

if TYPE_CHECKING:
    from plugin_trainer.model_store.artifacts import Cleaned
    from plugin_trainer.model_store.store import Store
    from plugin_trainer.model_store.versions import Version

Command = TypeVar("Command", bound=Callable[..., Any])


def store_option(command: Command) -> Command:
    """--store: which model store."""
    return click.option(
        "--store",
        metavar="DIR",
        help="The model store; PTRAIN_MODELS or else models/, by default.",
    )(command)


def tag_option(command: Command) -> Command:
    """--tag, several times."""
    return click.option(
        "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="What else to say of it."
    )(command)


@click.group(invoke_without_command=True)
@store_option
@json_option
@click.pass_context
def models(ctx: click.Context, store: str | None, json_: bool) -> None:
    """Keep trained models under names and versions. Without a command: list.

    A MODEL is written NAME (its newest version), NAME:VERSION or NAME@ALIAS.
    """
    if ctx.invoked_subcommand is None:
        _print_list(_open(store), json_=json_)
    else:
        ctx.default_map = {ctx.invoked_subcommand: {"store": store}}


@models.command("list")
@store_option
@json_option
def list_(store: str | None, json_: bool) -> None:
    """List the models, each with its newest version."""
    _print_list(_open(store), json_=json_)


@models.command()
@click.argument("name")
@store_option
@json_option
def versions(name: str, store: str | None, json_: bool) -> None:
    """List the versions of the model NAME, the newest last."""
    found = _open(store).versions(name)
    if json_:
        emit_json([version.as_json() for version in found])
        return
    rows = [
        (
            version.number,
            " ".join(f"@{alias}" for alias in version.aliases),
            _value(version),
            f"{_run(version)}, step {version.step}"
            + (f", {version.weights}" if version.weights != "raw" else ""),
            _minute(version),
        )
        for version in found
    ]
    echo(table(rows, ("version", "aliases", "metric", "from", "registered")))


@models.command()
@click.argument("model")
@store_option
@json_option
def show(model: str, store: str | None, json_: bool) -> None:
    """Show what is known of the version MODEL."""
    from plugin_trainer.cli.run import metrics_table

    version = _open(store).get(model)
    if json_:
        emit_json(version.as_json())
        return
    echo(f"{version}{''.join(f' @{alias}' for alias in version.aliases)}\n")
    echo(facts(_facts(version)))
    echo(f"  {'run':<10}  {_run(version)}")  # not wrapped: it is to be copied
    if version.metrics:
        echo("\n" + metrics_table(version.metrics))


@models.command()
@click.argument("run")
@click.option("--name", required=True, help="The model that it becomes a version of.")
@which_weights
@tag_option
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    help="A name for the version; best is given only to one that is better than the best so far.",
)
@click.option("--once", is_flag=True, help="Do nothing if the checkpoint is a version already.")
@store_option
@json_option
def register(
    run: str,
    name: str,
    checkpoint: str,
    weights: Any,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    once: bool,
    store: str | None,
    json_: bool,
) -> None:
    """Make a checkpoint of the run RUN the next version of a model."""
    registered = _open(store).register(
        run,
        name=name,
        checkpoint=checkpoint,
        weights=weights,
        aliases=aliases,
        tags=_tags(tags),
        once=once,
    )
    if json_:
        emit_json({**registered.version.as_json(), "new": registered.is_new})
        return
    echo(str(registered))


@models.command()
@click.argument("model")
@click.argument("name", metavar="ALIAS")
@click.option("--remove", is_flag=True, help="Take the alias away instead.")
@store_option
def alias(model: str, name: str, remove: bool, store: str | None) -> None:
    """Let ALIAS mean the version MODEL.

    Such as: ptrain models alias sst2:3 production.
    """
    from plugin_trainer.model_store.names import parse_reference

    opened = _open(store)
    if remove:
        holder, of = opened.remove_alias(model, name), parse_reference(model).name
        echo(f"{of}@{name} is no more (was {of}:{holder})")
        return
    version, before = opened.set_alias(model, name)
    was = f" (was {version.name}:{before})" if before is not None else ""
    echo(f"{version.name}@{name} is {version}{was}")


@models.command()
@click.argument("model")
@click.argument("tags", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--remove", multiple=True, metavar="KEY", help="Take a tag away.")
@store_option
def tag(model: str, tags: tuple[str, ...], remove: tuple[str, ...], store: str | None) -> None:
    """Set tags of the version MODEL.

    Such as: ptrain models tag sst2:3 owner=ann.
    """
    version = _open(store).set_tags(model, _tags(tags), remove=remove)
    echo(f"{version}: {_listed(version.tags) or 'no tags'}")


@models.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["run", "onnx"]),
    default="run",
    show_default=True,
    help="A run folder, or ONNX for a runtime without torch.",
)
@click.option("--int8", is_flag=True, help="ONNX: quantize, and calibrate the exits anew.")
@click.option(
    "--max-loss",
    type=Percent(),
    metavar="SHARE",
    help="ONNX: refuse an export that loses more accuracy, such as 1%.",
)
@click.option(
    "--exit",
    "exit_",
    metavar="WHEN",
    help="ONNX: how to leave by default: off, a promise such as 1%, or a level.",
)
@set_option
@trust_option
@store_option
def export(
    model: str,
    folder: Path,
    format_: str,
    int8: bool,
    max_loss: float | None,
    exit_: str | None,
    assignments: tuple[str, ...],
    store: str | None,
) -> None:
    """Export the version MODEL into FOLDER.

    FOLDER is a run folder then: `ptrain predict` and `ptrain evaluate` take it. With --format onnx
    it has ONNX segments, and MODEL may be a run folder too.
    """
    opened = _open(store)
    if format_ == "onnx":
        _export_onnx(opened, model, folder, assignments, int8=int8, max_loss=max_loss, exit_=exit_)
        return
    given = {"--int8": int8, "--max-loss": max_loss, "--exit": exit_, "--set": assignments}
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} is for --format onnx")
    version = opened.export(model, folder)
    echo(f"{version} is in {folder}: {_counted(len(version.files), version.size)}")
    echo(f"  {version.cannot_predict or f'use it: ptrain predict {folder} INPUT.txt'}")


def _export_onnx(
    store: Store, model: str, folder: Path, assignments: tuple[str, ...], **options: Any
) -> None:
    from plugin_trainer.settings.layers import from_assignments
    from plugin_trainer.training.inference import load_run
    from plugin_trainer.training.model.onnx_export import export_onnx

    overrides = from_assignments(assignments) if assignments else None
    if (Path(model) / "run.toml").is_file():
        loaded = load_run(model, device="cpu", overrides=overrides, trust=is_trusted())
    else:
        loaded = store.load(model, device="cpu", overrides=overrides, trust=is_trusted())
    for line in export_onnx(loaded, folder, **options):
        echo(line)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    echo(f"\n{model} is in {folder}: {_counted(len(files), size)}")
    echo(f"  use it: python {folder}/runtime.py {folder} INPUT.txt")


@models.command()
@click.argument("model", default="")
@store_option
@json_option
def verify(model: str, store: str | None, json_: bool) -> None:
    """Hash every file of the version MODEL, or of all, and compare."""
    from plugin_trainer.model_store.errors import StoreError

    looked_at, damages = _open(store).verify(model)
    if json_:
        emit_json(
            [
                {
                    "name": version.name,
                    "version": version.number,
                    "files": len(version.files),
                    "damaged": {
                        damage.path: damage.what
                        for damage in damages
                        if str(damage.version) == str(version)
                    },
                }
                for version in looked_at
            ]
        )
    elif not damages:
        files = {file for version in looked_at for file in version.files.values()}
        size = sum(file.size for file in files)
        count = counted(len(looked_at), "version")
        echo(f"{count} whole: {_counted(len(files), size)}")
    if damages:
        broken = dict.fromkeys(str(damage.version) for damage in damages)
        raise StoreError(
            f"{len(broken)} of {counted(len(looked_at), 'version')} damaged",
            hint=[str(damage) for damage in damages]
            + ["registering the same checkpoint again puts its files right"],
        )


@models.command()
@click.argument("model")
@click.option("--all", "all_", is_flag=True, help="The whole model: all versions, aliases too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def remove(model: str, all_: bool, yes: bool, store: str | None) -> None:
    """Remove the version MODEL.

    The files that no other version has are deleted. Its number is not given again.
    """
    from plugin_trainer.model_store.errors import StoreError
    from plugin_trainer.model_store.names import parse_reference

    opened, wanted = _open(store), parse_reference(model)
    if all_ and not wanted.is_newest:
        raise StoreError(f"--all is for a whole model, and {wanted} is one version")
    there = opened.versions(wanted.name) if all_ else [opened.removable(model)]
    if not _is_sure(f"remove {_shown(there)}?", yes=yes):
        echo("nothing was removed")
        return
    if all_:
        removed, cleaned = opened.remove_all(wanted.name)
    else:
        version, cleaned = opened.remove(str(there[0]))
        removed = [version]
    echo(f"removed {_shown(removed)}: {_freed(cleaned)}")


# ------------------------------------------------------------------------------------------ words


def _open(store: str | None) -> Store:
    from plugin_trainer.model_store.store import Store

    return Store(store)


def _print_list(store: Store, *, json_: bool) -> None:
    damaged: list[str] = []
    found = store.versions(damaged=damaged)
    for line in damaged:
        echo(line, err=True)
    groups = [list(group) for _, group in groupby(found, key=lambda version: version.name)]
    if json_:
        emit_json([_summary(group) for group in groups])
        return
    if not groups:
        echo(
            f"there is no model in {store.folder}/; "
            "register one: ptrain models register RUN --name NAME"
        )
        return
    rows = [
        (
            str(group[-1]),
            _value(group[-1]),
            ", ".join(f"@{alias} {number}" for alias, number in _aliases(group).items()),
            _minute(group[-1]),
        )
        for group in groups
    ]
    echo(table(rows, ("newest", "metric", "aliases", "registered")))


def _summary(group: list[Version]) -> dict[str, Any]:
    """A model for programs: its versions with what was measured of them."""
    return {
        "name": group[0].name,
        "newest": group[-1].number,
        "aliases": _aliases(group),
        "versions": [
            {key: value for key, value in version.as_json().items() if key in _IN_LISTS}
            for version in group
        ],
    }


_IN_LISTS = (
    *("version", "aliases", "tags", "created", "run", "step", "weights", "best", "metrics"),
)


def _aliases(group: list[Version]) -> dict[str, int]:
    return {alias: version.number for version in group for alias in version.aliases}


def _facts(version: Version) -> list[tuple[str, str]]:
    about, settings = version.about, version.settings
    git = about.get("git") or {}
    plugins = [f"{plugin['name']} {plugin['version']}" for plugin in about.get("plugins", [])]
    return [
        ("step", f"{version.step} of {about.get('steps', '?')}"),
        ("weights", version.weights),
        ("registered", version.created),
        ("tags", _listed(version.tags)),
        ("model", str(settings.get("model", ""))),
        ("data", str(settings.get("data", ""))),
        ("plugins", ", ".join(plugins)),
        ("packages", ", ".join(f"{name} {of}" for name, of in about.get("packages", {}).items())),
        ("git", f"{git['commit']}{', with changes' if git.get('changed') else ''}" if git else ""),
        ("files", f"{len(version.files)}, {_in_units(version.size)}"),
    ]


def _run(version: Version) -> str:
    """The run's folder, as it is typed from here."""
    folder = Path(version.run)
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _minute(version: Version) -> str:
    return version.created[:16].replace("T", " ")


def _value(version: Version) -> str:
    return f"{version.watch} {version.value:.4g}" if version.value is not None else ""


def _tags(tags: tuple[str, ...]) -> dict[str, str]:
    from plugin_trainer.model_store.errors import StoreError

    for text in tags:
        if "=" not in text:
            raise StoreError(f"'{text}' is not a tag", hint="write it as KEY=VALUE")
    return {key: value for key, _, value in (text.partition("=") for text in tags)}


def _listed(tags: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in tags.items())


def _shown(found: list[Version]) -> str:
    if len(found) == 1:
        return str(found[0])
    return f"{found[0].name}, {counted(len(found), 'version')}"


def _is_sure(question: str, *, yes: bool) -> bool:
    from plugin_trainer.model_store.errors import StoreError

    if yes:
        return True
    if not sys.stdin.isatty():
        raise StoreError(f"{question} there is nobody to ask", hint="say so with --yes")
    return click.confirm(question)


def _freed(cleaned: Cleaned) -> str:
    if not cleaned.files:
        return "its files are those of other versions, too, and stay"
    return f"{_counted(cleaned.files, cleaned.size)} deleted"


def _counted(files: int, size: int) -> str:
    return f"{counted(files, 'file')}, {_in_units(size)}"


def _in_units(size: int) -> str:
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}"
    return f"{size} bytes"
