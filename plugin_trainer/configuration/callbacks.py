"""The callbacks of a run: the defaults and the listed ones, less those taken away."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from plugin_trainer.configuration.choosing import find, with_settings
from plugin_trainer.configuration.chosen import Choice
from plugin_trainer.configuration.draft import Draft
from plugin_trainer.registry.catalog import Offer
from plugin_trainer.registry.parts import CALLBACK_SETTINGS
from plugin_trainer.settings.layers import CALLBACKS
from plugin_trainer.settings.toml_lines import Key


def choose_callbacks(draft: Draft) -> list[Choice]:
    """The callbacks of the run, each with its settings."""
    offers = callback_offers(draft)
    tables = _tables(draft, offers)
    choices = []
    for address, offer in offers.items():
        spelling, table = tables.get(address, (address, {}))
        at = (CALLBACK_SETTINGS, spelling)
        choices.append(with_settings(draft, offer, table, at=at, named=CALLBACKS))
    return [choice for choice in choices if choice is not None]


def callback_offers(draft: Draft) -> dict[str, Offer[Any]]:
    """What the run has, by address in calling order."""
    key = CALLBACKS
    listed = draft.values.get("callbacks", [])
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    known = draft.catalog.offers("callback")
    offers = {offer.address: offer for offer in known if offer.spec.default and _has_all(offer)}
    for name in names:
        offer = find(draft, "callback", name.removeprefix("-"), key)
        if offer is None:
            continue
        if not name.startswith("-"):
            offers.setdefault(offer.address, offer)
        elif offers.pop(offer.address, None) is None and not offer.spec.default:
            draft.say(key, f"'{name}' takes away a callback that is not part of the run")
    return dict(sorted(offers.items(), key=lambda item: item[1].spec.last))


def _tables(draft: Draft, offers: Mapping[str, Offer[Any]]) -> dict[str, tuple[str, Any]]:
    """By the address of each callback: how its settings table is spelt, and the table."""
    tables: dict[str, tuple[str, Any]] = {}
    origins = draft.merged.origins
    given = draft.values.get(CALLBACK_SETTINGS, {})
    for name, table in given.items() if isinstance(given, Mapping) else ():
        key = (CALLBACK_SETTINGS, name)
        offer = find(draft, "callback", name, key)
        if offer is None:
            continue
        if offer.address not in offers and not _has_all(offer):
            continue  # the run was written down where a default callback had its packages
        if offer.address not in offers and _was_taken_away(draft, key):
            continue  # from a recipe, say, and its settings go with it
        if offer.address not in offers:
            draft.say(
                key,
                f"this run has no callback '{name}': add it to callbacks, or remove the table",
            )
            with_settings(draft, offer, table, at=key, named=key)  # for what is wrong in it
            continue
        # A callback may be spelt in two ways, in a run written down and in what goes over it.
        spelt = tables.get(offer.address, ("", {}))[1]
        both = {**spelt, **table} if isinstance(table, Mapping) else table
        tables[offer.address] = (name, both)
        for known in [known for known in origins if known[:2] == key]:
            origins[(CALLBACK_SETTINGS, offer.address, *known[2:])] = origins[known]
    return tables


def _was_taken_away(draft: Draft, table: Key) -> bool:
    """Whether the callbacks were chosen over the place that gave a table of settings."""
    return draft.merged.height_of(table) < draft.merged.height_of(CALLBACKS)


def _has_all(offer: Offer[Any]) -> bool:
    """Whether the packages are there that the callback cannot do without."""
    return all(map(_can_be_found, offer.spec.requires))


def _can_be_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name, where the package around it is missing
        return False
