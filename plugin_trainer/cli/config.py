"""`ptrain config`: what a run would be made of, and whether its settings are right."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from plugin_trainer.cli.options import (
    configured,
    json_option,
    plugin_option,
    run_file_argument,
    what_to_run,
)
from plugin_trainer.cli.printing import WIDTH, echo, emit_json, facts, table

if TYPE_CHECKING:
    from plugin_trainer.registry.explaining import Explanation


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
    values = configuration.values_with_tuning()
    if json_:
        origins = {join_key(key): place for key, place in configuration.origins.items()}
        emit_json(
            {
                key: {"value": value, "origin": origins.get(key, "default")}
                for key, value in flatten(values).items()
            }
        )
        return
    echo(to_toml(values, origins=configuration.origins).removesuffix("\n"))


@config.command()
@what_to_run
def check(run_file: str | None, plugins: tuple[str, ...], assignments: tuple[str, ...]) -> None:
    """Check every setting of a run without building it; all mistakes are named at once.

    Names of optimizers, losses and schedules of torch are checked too, and what these take.
    """
    configuration = configured(run_file, plugins, assignments)

    from plugin_trainer.cli.config_check import notes_on, problems_in
    from plugin_trainer.errors import SettingsError

    problems = problems_in(configuration)
    if configuration.settings.tune is not None:
        from plugin_trainer.tuning.checking import problems_in_tuning

        again = partial(configured, run_file, plugins, assignments)
        problems += problems_in_tuning(configuration, again, more=problems_in)
    if problems:
        raise SettingsError(problems)
    settings = configuration.settings
    for note in notes_on(configuration):
        echo(f"note: {note}", err=True)
    echo(f"the settings are right: {settings.model} on {settings.data}, {settings.length}")


@config.command()
@run_file_argument
@plugin_option
def schema(run_file: str | None, plugins: tuple[str, ...]) -> None:
    """Print the JSON Schema of a run file, for editors that complete and check TOML.

    Write it to a file, and name that in the first line of a run file:
    #:schema ./ptrain.schema.json

    It knows what installed plugins offer, and those that RUN.toml or --plugin names.
    """
    from plugin_trainer.configuration import open_to_explain, read_run_file, used_unasked
    from plugin_trainer.registry.catalog import with_installed
    from plugin_trainer.registry.discovery import installed_plugins
    from plugin_trainer.registry.run_schema import run_file_schema

    layer = read_run_file(run_file) if run_file else None
    catalog, _ = open_to_explain(layer, plugins=plugins)
    unnamed = used_unasked(layer, plugins=plugins)
    installed = [plugin.name for plugin in installed_plugins()]
    emit_json(run_file_schema(with_installed(catalog), installed=installed, unnamed=unnamed))


@config.command()
@click.argument("key")
@what_to_run
@json_option
def explain(
    key: str,
    run_file: str | None,
    plugins: tuple[str, ...],
    assignments: tuple[str, ...],
    json_: bool,
) -> None:
    """Say what KEY means, what it may be, its value and where that was given.

    KEY is dotted: optimizer.learning_rate, or a table: optimizer. Without a run, the value is the
    default.
    """
    from plugin_trainer import configuration
    from plugin_trainer.registry import explaining
    from plugin_trainer.registry.catalog import with_installed
    from plugin_trainer.settings.layers import from_assignments

    catalog, merged = configuration.open_to_explain(
        configuration.read_run_file(run_file) if run_file else None,
        plugins=plugins,
        overrides=from_assignments(assignments) if assignments else None,
    )
    callbacks = configuration.callbacks_in(catalog, merged)
    if key.partition(".")[0] == "callback_settings":
        catalog = with_installed(catalog)
    found = explaining.explain(key, catalog=catalog, merged=merged, callbacks=callbacks)
    if json_:
        emit_json(_as_json(found))
    else:
        echo(_as_text(found))


def _as_json(found: Explanation) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found)


def _as_text(found: Explanation) -> str:
    """What is known of the key, and a table of the keys below it."""
    is_table = found.keys is not None
    known = facts(
        [
            ("value", _value(found)),
            ("origin", found.origin if found.in_run else ""),
            ("default", "required" if found.required else "" if is_table else found.default),
            ("takes", found.takes),
            ("meaning", found.meaning),
            ("part of", found.of),
        ]
    )
    lines = [found.key, known]
    if found.keys:
        prefix = f"{found.key}."
        rows = [
            (row.key.removeprefix(prefix), _value(row), row.origin, row.meaning)
            for row in found.keys
        ]
        lines += ["", table(rows, ("key", "value", "origin", "meaning"), width=WIDTH)]
    return "\n".join(lines)


def _value(found: Explanation) -> str:
    """The value as TOML has it; of a table its keys say what it is."""
    from plugin_trainer.settings.render import in_one_line

    if not found.in_run:
        return "not part of this run"
    if found.keys is not None:
        return "off" if found.value is False else ""
    if found.value is None:
        return "" if found.required else "left out"
    return in_one_line(found.value)
