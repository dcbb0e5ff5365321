"""What configuring gives: each part of a run with its settings, and the run before it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plugin_trainer.registry.catalog import Catalog, Offer
from plugin_trainer.settings.render import to_values
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key


@dataclass(frozen=True)
class Choice:
    """One part of a run: which offer, and its settings as its dataclass, or as a table."""

    offer: Offer[Any]
    settings: Any

    @property
    def address(self) -> str:
        """How the part is named in a run file: dactbert/classifier."""
        return self.offer.address

    def values(self) -> dict[str, Any]:
        """The settings as a table of TOML values, defaults included."""
        return (
            to_values(self.settings)
            if dataclasses.is_dataclass(self.settings)
            else dict(self.settings)
        )


@dataclass(frozen=True)
class Configuration:
    """A run before it is built.

    model, data  None if the caller brings them as objects
    origins      where each key of the settings was given
    places       the recipe, the run file, --set: what there is of them, the lowest first
    """

    settings: RunSettings
    catalog: Catalog
    model: Choice | None
    data: Choice | None
    schedule: Choice
    callbacks: tuple[Choice, ...]
    origins: Mapping[Key, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """The whole run as a table of TOML values: what `run.toml` in the run folder says."""
        return {key: value for key, value in self.values_with_tuning().items() if key != "tune"}

    def values_with_tuning(self) -> dict[str, Any]:
        """The whole run with the search that goes with it, which is no part of a run."""
        return to_values(self.settings)
