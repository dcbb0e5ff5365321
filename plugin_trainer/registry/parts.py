"""The parts that every run has: the key that names each, the table of its settings, its default."""

from __future__ import annotations

from dataclasses import dataclass

from plugin_trainer.registry.catalog import Kind
from plugin_trainer.settings.toml_lines import Key


@dataclass(frozen=True)
class Part:
    """How a run file says one part.

    named     the key that names it
    table     the table of its settings
    fallback  what a run uses that names none; empty: what its plugins have as their default
    """

    named: Key
    table: str
    fallback: str = ""


PARTS: dict[Kind, Part] = {
    "model": Part(("model",), "model_settings"),
    "data": Part(("data",), "data_settings"),
    "scheduler": Part(("schedule", "name"), "schedule_settings", fallback="core/linear"),
}

CALLBACK_SETTINGS = "callback_settings"
"""Where the callbacks, of which there may be any number, have a table each."""

TORCH_SCHEDULES = "torch.optim.lr_scheduler"
"""Where a schedule is looked for that no plugin offers and that is written like a class."""


def is_class_name(name: str) -> bool:
    """Whether a name is written like a class of torch: OneCycleLR."""
    return name[:1].isupper() and not set("/:.") & set(name)
