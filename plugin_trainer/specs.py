"""What a plugin offers, as frozen data: a name and the strings that say where the thing is.

A spec is cheap to make, print and compare, and imports nothing: its target is imported only when a
run builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

API_VERSION = 1
"""The plugin API this package speaks. A hook module says which one it was written for: PTRAIN_API
= 1.
"""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all offers have in common.

    name      unique among its plugin's offers of this kind; users write plugin/name
    target    "package.module:attribute", imported only when built
    settings  "package.module:Dataclass" that validates the offer's settings table; empty if the
              target takes its settings as plain keyword arguments
    summary   one line for `ptrain plugins show`
    default   chosen when a run names the plugin and nothing of this kind
    """

    name: str
    target: str
    settings: str = ""
    summary: str = ""
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """A model. The target is called as target(settings, data) and returns an nn.Module."""


@dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """A data module. The target is called as target(settings).

    defaults_from  settings that, left out, take the value of another key of the run:
                   {"tokenizer": "model_settings.encoder"}
    """

    defaults_from: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CallbackSpec(Spec):
    """A callback. The target is called as target(settings); its ptrain_* methods are hooks.

    For callbacks, `default` means: part of every run that does not take it away with "-name".

    requires  modules the callback cannot do without; a default callback is left out where one of
              them is not installed
    last      a callback that is called after all others: it shows or writes
              what they log
    writes    it shows or writes and does nothing else: where several processes train one run, only
              the first has it
    """

    requires: tuple[str, ...] = ()
    last: bool = False
    writes: bool = False


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec(Spec):
    """A learning-rate schedule.

    The target is called as target(optimizer, settings, total_steps) and returns a
    torch.optim.lr_scheduler.LRScheduler that is stepped once per optimizer step.
    """


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """A TOML file that a plugin ships.

    name      unique among its plugin's files of this kind
    file      the TOML file, relative to the folder of the hook module
    """

    name: str
    file: str
    summary: str = ""
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(FileSpec):
    """A run file that a plugin ships, so that `ptrain run --plugin NAME` needs nothing else."""


@dataclass(frozen=True, kw_only=True)
class SpaceSpec(FileSpec):
    """What a plugin searches: a [tune] table, and the settings of a run that go with it.

    `ptrain tune` lays it over the recipe and under the run file. `default` means: taken where
    nothing else says what to search.
    """
