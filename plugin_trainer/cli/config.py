"""`ptrain config`: what a run would be made of, and whether its settings are right."""

from __future__ import annotations

from pathlib import Path

import click

from plugin_trainer.cli.options import (
    configured,
    json_option,
    plugin_option,
    run_file_argument,
    what_to_run,
)
from plugin_trainer.cli.printing import emit_json


@click.group()
def config() -> None:
    """Show, check and explain settings."""


@config.command()
@what_to_run
@json_option
def show(
    run_file: str | None, plugins: tuple[str, ...], assignments: tuple[str, ...], json_: bool
) -> None:
    """Print every setting of a run, defaults included, and where each was given."""
    from plugin_trainer.settings.render import flatten, to_toml
    from plugin_trainer.settings.toml_lines import join_key

    configuration = configured(run_file, plugins, assignments)
    values = configuration.values()
    if json_:
        origins = {join_key(key): place for key, place in configuration.origins.items()}
        emit_json(
            {
                key: {"value": value, "origin": origins.get(key, "default")}
                for key, value in flatten(values).items()
            }
        )
        return
    click.echo(to_toml(values, origins=configuration.origins), nl=False)


@config.command()
@what_to_run
def check(run_file: str | None, plugins: tuple[str, ...], assignments: tuple[str, ...]) -> None:
    """Check every setting of a run without building it; all mistakes are named at once."""
    configuration = configured(run_file, plugins, assignments)
    settings = configuration.settings
    click.echo(f"the settings are right: {settings.model} on {settings.data}, {settings.length}")


@config.command()
@run_file_argument
@plugin_option
def schema(run_file: str | None, plugins: tuple[str, ...]) -> None:
    """Print the JSON Schema of a run file, for editors that complete and check TOML.

    Write it to a file, and name that in the first line of a run file:
    #:schema ./ptrain.schema.json

    It knows what installed plugins offer, and those that RUN.toml or --plugin names.
    """
    from plugin_trainer.configuration import open_to_explain
    from plugin_trainer.registry.catalog import with_installed
    from plugin_trainer.registry.discovery import installed_plugins
    from plugin_trainer.registry.run_schema import run_file_schema
    from plugin_trainer.settings.layers import read_toml

    layer = read_toml(Path(run_file)) if run_file else None
    catalog, unnamed = open_to_explain(layer, plugins=plugins)
    installed = [plugin.name for plugin in installed_plugins()]
    emit_json(run_file_schema(with_installed(catalog), installed=installed, unnamed=unnamed))
