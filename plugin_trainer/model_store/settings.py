"""What the callback `register_best` takes. Checking it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.model_store.names import check_alias, check_name, check_tag


@dataclass(frozen=True, kw_only=True)
class RegisterBestSettings:
    """Under what name the best checkpoint of a run is registered, and when.

    name     the model that it becomes a version of
    aliases  names that the version is given; `best` only if it is better than the one that has it
    tags     what else to say of it, by key
    weights  which weight set's best: "raw" or "ema"
    when     "end" registers once, when the run has finished or stopped early; "best" also each new
             best, as soon as its checkpoint is on disk
    store    the folder of the model store; left out, what PTRAIN_MODELS names, else models/
    """

    name: str
    aliases: tuple[str, ...] = ("best",)
    tags: Mapping[str, str] = field(default_factory=dict)
    weights: Literal["raw", "ema"] = "raw"
    when: Literal["end", "best"] = "end"
    store: str = ""

    def __post_init__(self) -> None:
        """Refuse what the store would refuse when the run has ended."""
        try:
            check_name(self.name)
            for alias in self.aliases:
                check_alias(alias)
            for key, value in self.tags.items():
                check_tag(key, value)
        except StoreError as error:
            raise ValueError("; ".join((error.message, *error.hint))) from None
