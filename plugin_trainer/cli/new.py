"""`ptrain plugins new`: write a small plugin that works, to be changed into one's own."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import click

from plugin_trainer import API_VERSION, __version__
from plugin_trainer.cli.printing import echo
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.names import NAME, NAME_RULE, RESERVED_NAMES

SUFFIX = ".template"


@click.command()
@click.argument("name")
@click.option(
    "--to", type=click.Path(path_type=Path), help="The folder; ./ptrain-NAME if not given."
)
def new(name: str, to: Path | None) -> None:
    """Start a plugin called NAME that trains a small model at once."""
    folder = write_plugin(name, to=to)
    echo(f"wrote {folder}")
    echo(f"  pip install -e {folder}")
    echo(f"  ptrain run --plugin {name}")
    echo(f"or without installing it: ptrain run --plugin {_as_path(folder)}")


def write_plugin(name: str, *, to: Path | None = None) -> Path:
    """Write the template's files; returns their folder.

    Raises PtrainError for a name that no plugin may have, and for a folder that holds something.
    """
    if not NAME.fullmatch(name):
        raise PtrainError(
            f"'{name}' cannot be the name of a plugin",
            hint=[f"a name is {NAME_RULE}", *_better(name)],
        )
    if name in RESERVED_NAMES:
        raise PtrainError(f"'{name}' cannot be the name of a plugin: ptrain itself uses it")
    distribution = f"ptrain-{name.replace('_', '-')}"
    folder = to if to is not None else Path(distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PtrainError(
            f"{folder} is not empty, and nothing in it is overwritten",
            hint="choose another: --to DIR",
        )
    values = {
        "name": name,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "distribution": distribution,
        "api": str(API_VERSION),
        "version": ".".join(__version__.split(".")[:2]),
    }
    _write(files("plugin_trainer") / "template", folder, values)
    return folder


def _better(name: str) -> list[str]:
    """A name that would do, made from one that does not."""
    made = re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("ptrain-")).strip("_")
    usable = NAME.fullmatch(made) and made not in RESERVED_NAMES
    return [f"'{made}' would do"] if usable else []


def _as_path(folder: Path) -> str:
    """The spelling that means a path, whatever the folder is called."""
    return str(folder) if folder.is_absolute() else f"./{folder}"


def _write(source: Traversable, folder: Path, values: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        to = folder / entry.name.replace("NAME", values["name"])
        if entry.is_dir():
            if entry.name != "__pycache__":
                _write(entry, to, values)
        elif entry.name.endswith(SUFFIX):
            text = Template(entry.read_text(encoding="utf-8")).substitute(values)
            (folder / to.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")
