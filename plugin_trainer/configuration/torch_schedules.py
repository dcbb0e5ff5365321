"""The schedules that torch itself has: a run file names one by its bare class name."""

from __future__ import annotations

from typing import Any

from plugin_trainer.configuration.draft import Draft
from plugin_trainer.registry.catalog import Offer
from plugin_trainer.registry.names import closest
from plugin_trainer.registry.parts import TORCH_SCHEDULES
from plugin_trainer.settings.toml_lines import Key


def find_in_torch(draft: Draft, name: str, key: Key) -> Offer[Any] | None:
    """The schedule of that name; None, and the mistake kept, if torch has none. Imports torch."""
    known = torch_schedules()
    if name in known:
        return draft.catalog.find("scheduler", f"{TORCH_SCHEDULES}:{name}")
    offers = draft.catalog.offers("scheduler")
    near = closest(name, [*known, *(offer.spec.name for offer in offers)])
    suggestion = f"; did you mean '{near}'?" if near else ""
    listed = ", ".join([*(offer.address for offer in offers), *known])
    draft.say(key, f"{TORCH_SCHEDULES} has no '{name}'{suggestion} (there are: {listed})")
    return None


def torch_schedules() -> list[str]:
    """The schedules that torch has, by the names of their classes. Imports torch."""
    from torch.optim import lr_scheduler

    return sorted(
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type)
        and issubclass(value, lr_scheduler.LRScheduler)
        and value is not lr_scheduler.LRScheduler
        and not name.startswith("_")
    )
