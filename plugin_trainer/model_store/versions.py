"""A version of a model: everything that is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugin_trainer.files import in_json
from plugin_trainer.model_store.artifacts import Artifact
from plugin_trainer.watching import is_better


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model. Nothing of it ever changes but its tags and its aliases.

    name, number  what it is called: "sst2:3"
    created       when it was registered, in UTC
    run           the folder of the run it is from
    step          the optimizer steps its weights were trained for
    weights       "raw", or "ema" for the averaged ones
    watch, mode   what best meant in that run: "val/accuracy", "max"
    content       a hash of the weights, and of the step and the kind they are of
    metrics       the evaluation of these weights
    settings      the run's settings
    about         what run.json said: plugins and versions, packages, git, machine
    files         by their paths in a run folder
    """

    name: str
    number: int
    created: str
    run: str
    step: int
    weights: str
    watch: str
    mode: str
    content: str
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    files: Mapping[str, Artifact]
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"

    @property
    def value(self) -> float | None:
        """The metric that says how good it is; None if there is none, or it is not finite."""
        value = self.metrics.get(self.watch)
        return value if value is not None and math.isfinite(value) else None

    @property
    def cannot_predict(self) -> str:
        """Why `ptrain predict` cannot answer with it, in words; empty if nothing says so."""
        if not self.settings.get("model"):
            return "its model is in the program that called fit: load it there, with model=MODEL"
        if self.about.get("predicts") is False:
            return "it cannot predict: its data module has no predict and decode"
        return ""

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(artifact.size for artifact in self.files.values())

    def is_better_than(self, other: Version) -> bool | None:
        """Whether its metric is the better one; None if they do not have the same one to
        compare.
        """
        if (self.watch, self.mode) != (other.watch, other.mode) or self.value is None:
            return None
        if other.value is None:
            return None
        return is_better(self.value, other.value, self.mode)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "name": self.name,
            "version": self.number,
            "aliases": list(self.aliases),
            "tags": dict(self.tags),
            "created": self.created,
            "run": self.run,
            "step": self.step,
            "weights": self.weights,
            "best": {"watch": self.watch, "mode": self.mode, "value": self.value},
            "metrics": in_json(self.metrics),
            "plugins": self.about.get("plugins", []),
            "packages": self.about.get("packages", {}),
            "git": self.about.get("git"),
            "settings": dict(self.settings),
            "files": {path: vars(artifact) for path, artifact in self.files.items()},
            "about": dict(self.about),
        }
