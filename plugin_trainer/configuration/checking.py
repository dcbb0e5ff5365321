"""Everything about a run looked at together: one configuration, or every mistake at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugin_trainer.configuration.callbacks import choose_callbacks
from plugin_trainer.configuration.choosing import choose, fill_in_data_defaults
from plugin_trainer.configuration.chosen import Choice, Configuration
from plugin_trainer.configuration.draft import Draft
from plugin_trainer.configuration.sources import laid_over
from plugin_trainer.registry.parts import CALLBACK_SETTINGS
from plugin_trainer.settings.layers import Layer
from plugin_trainer.settings.schema import RunSettings


def configure(
    run_file: Layer | None = None,
    *,
    plugins: Sequence[str] = (),
    overrides: Layer | None = None,
    folder: Path | None = None,
    parts: bool = True,
    space: str | None = None,
    over: Sequence[Layer] = (),
) -> Configuration:
    """Lay the sources over each other, open the plugins they name, and check everything.

    run_file   a run file's settings
    plugins    plugins named beside it, as typed
    overrides  what goes over everything: --set
    folder     the folder that relative plugin paths start from
    parts      whether the run has a model and a data module of its own; the library's `fit` brings
               them
    space      a plugin's search space to lay under the run file; empty for the default one, if
               nothing else says what to search
    over       what goes over --set: the values of a trial

    Raises SettingsError with every mistake, or what the registry raises for a plugin that cannot be
    used if that is all that is wrong.
    """
    draft = Draft(
        *laid_over(run_file, overrides, plugins=plugins, folder=folder, space=space, over=over)
    )
    _spell_out_plugins(draft, origin="--plugin" if plugins else "default")
    draft.check(RunSettings, draft.values)
    model = data = None
    if parts:
        model = choose(draft, "model")
        fill_in_data_defaults(draft)
        data = choose(draft, "data")
    schedule = choose(draft, "scheduler")
    callbacks = choose_callbacks(draft)
    draft.refuse_mistakes()
    assert schedule is not None
    values = _written_out(draft.values, model, data, schedule, callbacks)
    return Configuration(
        draft.check(RunSettings, values),
        draft.catalog,
        model,
        data,
        schedule,
        tuple(callbacks),
        draft.merged.origins,
        draft.merged.places,
    )


def _spell_out_plugins(draft: Draft, *, origin: str) -> None:
    """Name each plugin so that the settings of the run can be read again from any folder."""
    spelt_out = [p.source.spelling for p in draft.catalog.plugins if p.source.origin != "core"]
    if spelt_out and _is_list_of_names(draft.values.get("plugins", [])):
        draft.values["plugins"] = spelt_out
        draft.merged.origins.setdefault(("plugins",), origin)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _written_out(
    values: dict[str, Any],
    model: Choice | None,
    data: Choice | None,
    schedule: Choice,
    callbacks: Sequence[Choice],
) -> dict[str, Any]:
    """The table with each part's full address and all its settings, those left out too."""
    return {
        **values,
        "model": model.address if model else "",
        "data": data.address if data else "",
        "schedule": {**values.get("schedule", {}), "name": schedule.address},
        "model_settings": model.values() if model else {},
        "data_settings": data.values() if data else {},
        "schedule_settings": schedule.values(),
        CALLBACK_SETTINGS: {
            choice.address: choice.values() for choice in callbacks if choice.values()
        },
    }
