"""Writes down the whole surface that users type against: every command and every setting.

A change of the surface shows as a difference in these files. To renew them on purpose:

    python tests/golden/make.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent


def commands() -> dict[str, Any]:
    """Every command of this package, by how it is typed, with its arguments and options."""
    from plugin_trainer.cli.main import COMMANDS, ptrain

    context = click.Context(ptrain)
    found = {"ptrain": _parameters(ptrain)}
    for name in COMMANDS:
        command = ptrain.get_command(context, name)
        assert command is not None
        found |= _with_subcommands(f"ptrain {name}", command)
    return found


def _with_subcommands(typed: str, command: click.Command) -> dict[str, Any]:
    found = {typed: _parameters(command)}
    for name, below in getattr(command, "commands", {}).items():
        found |= _with_subcommands(f"{typed} {name}", below)
    return found


def _parameters(command: click.Command) -> dict[str, Any]:
    return {
        (parameter.opts[0] if isinstance(parameter, click.Option) else parameter.name.upper()): {
            "kind": parameter.param_type_name,
            "flags": [*parameter.opts, *parameter.secondary_opts],
            "type": _type(parameter),
            "default": _default(parameter),
            "required": parameter.required,
            "multiple": parameter.nargs == -1 or bool(getattr(parameter, "multiple", False)),
        }
        for parameter in command.params
    }


def _type(parameter: click.Parameter) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    if isinstance(parameter.type, click.Choice):
        return " | ".join(map(str, parameter.type.choices))
    return parameter.type.name


def _default(parameter: click.Parameter) -> Any:
    """None where there is none, whichever way click says so."""
    default = parameter.default
    return default if isinstance(default, (str, int, float)) and default is not False else None


def settings() -> dict[str, Any]:
    """Every table that core knows, with the keys in it."""
    from plugin_trainer.callbacks import hooks
    from plugin_trainer.registry.building import import_target
    from plugin_trainer.settings.schema import RunSettings

    found = _tables(RunSettings, "a run")
    for kind, specs in (
        ("callback", hooks.ptrain_callbacks()),
        ("schedule", hooks.ptrain_schedulers()),
    ):
        for spec in specs:
            found |= _tables(import_target(spec.settings), f"{kind} {spec.name}")
    return found


def _tables(cls: type, name: str) -> dict[str, Any]:
    from plugin_trainer.settings.describe import describe
    from plugin_trainer.settings.validation import hints_of
    from plugin_trainer.settings.words import bounds_of, dataclass_in, in_words, values_of

    hints = hints_of(cls)
    keys, below = {}, {}
    for key in describe(cls):
        hint = hints[key.key]
        keys[key.key] = {
            "takes": in_words(hint),
            "default": key.default,
            "required": key.required,
            "bounds": bounds_of(hint),
        }
        for inner, label in ((hint, key.key), (values_of(hint), f'{key.key}."NAME"')):
            if (nested := dataclass_in(inner)) is not None:
                below |= _tables(nested, f"{name}: {label}")
    return {name: keys, **below}


FILES = {"cli.json": commands, "settings.json": settings}


def written(surface: Mapping[str, Mapping[str, Any]]) -> str:
    """As the files have it: one line a key, so that a difference is one line."""
    parts = []
    for name, keys in surface.items():
        rows = [
            f"    {json.dumps(key)}: {json.dumps(about, ensure_ascii=False)}"
            for key, about in keys.items()
        ]
        body = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
        parts.append(f"  {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    for file, surface in FILES.items():
        (HERE / file).write_text(written(surface()), encoding="utf-8")
        print(f"wrote {HERE / file}")
