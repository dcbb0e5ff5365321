"""Runs of plugin_trainer.fit: their model and data are in the program that called it."""

from __future__ import annotations

from pathlib import Path

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import Layer


def is_of_fit(run_toml: Layer) -> bool:
    """Whether the settings that a run was written down with name no model and no data."""
    return not run_toml.values.get("model") and not run_toml.values.get("data")


def refuse_run_of_fit(folder: Path, run_toml: Layer) -> None:
    """Raise PtrainError, with what to do in Python, for a run that only its program can load."""
    if is_of_fit(run_toml):
        raise PtrainError(
            f"{folder} is a run of plugin_trainer.fit: its model and data are in the program that "
            "made it, and nowhere else",
            hint=[
                "to use it, in Python: "
                f'plugin_trainer.load_run("{folder}", model=MODEL, validation=LOADER)',
                'to resume it, run that program again, with resume="auto"',
            ],
        )
