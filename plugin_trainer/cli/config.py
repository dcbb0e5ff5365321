"""`ptrain config`: what a run would be made of, and whether its settings are right."""

from __future__ import annotations

import click

from plugin_trainer.cli.options import configured, json_option, what_to_run
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
