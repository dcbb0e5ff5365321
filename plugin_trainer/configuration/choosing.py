"""What a run names, found among what plugins offer, with its settings checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugin_trainer.configuration.chosen import Choice
from plugin_trainer.configuration.draft import Draft
from plugin_trainer.configuration.problems import in_one_line
from plugin_trainer.configuration.torch_schedules import find_in_torch
from plugin_trainer.errors import PluginError, PtrainError, UnknownOffer
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import Kind, Offer
from plugin_trainer.registry.parts import PARTS, is_class_name
from plugin_trainer.settings.layers import look_up
from plugin_trainer.settings.toml_lines import Key, split_key
from plugin_trainer.settings.validation import with_texts


def choose(draft: Draft, kind: Kind) -> Choice | None:
    """The model, data module or schedule of the run; None if something about it is wrong."""
    part = PARTS[kind]
    name = look_up(draft.values, part.named) or part.fallback
    if not isinstance(name, str):
        return None
    offer = find(draft, kind, name, part.named) if name else _default(draft, kind, part.named)
    if offer is None:
        return None
    table = draft.values.get(part.table, {})
    return with_settings(draft, offer, table, at=(part.table,), named=part.named)


def find(draft: Draft, kind: Kind, name: str, key: Key) -> Offer[Any] | None:
    """The offer that a key names; None, and the mistake kept, if there is none."""
    try:
        return draft.catalog.find(kind, name)
    except UnknownOffer as error:
        if kind == "scheduler" and is_class_name(name):
            return find_in_torch(draft, name, key)
        text = in_one_line(error)
        if not (_may_be_elsewhere(draft, name) and "did you mean" not in text):
            draft.say(key, text)
        return None


def with_settings(
    draft: Draft, offer: Offer[Any], values: Any, *, at: Key, named: Key
) -> Choice | None:
    """The offer with its settings, checked.

    at     where its table stands
    named  the key that names the offer
    """
    if not isinstance(values, Mapping):
        return None
    try:
        cls = settings_class(offer)
    except PluginError as error:
        draft.unusable.append((named, error))
        return None
    if cls is None:
        return Choice(offer, dict(values))
    values = with_texts(cls, values, draft.merged.texts, at=at)
    settings = draft.check(cls, values, at=at)
    return None if settings is None else Choice(offer, settings)


def fill_in_data_defaults(draft: Draft) -> None:
    """Give the data module's unset keys the values they are declared to take from elsewhere."""
    name = draft.values.get("data")
    if not isinstance(name, (str, type(None))):
        return
    try:
        offer = draft.catalog.find("data", name) if name else draft.catalog.default("data")
    except PtrainError:
        return
    if offer is None:
        return
    table = draft.values.setdefault("data_settings", {})
    for name, source in offer.spec.defaults_from.items():
        value = look_up(draft.values, split_key(source))
        if value is not None and isinstance(table, dict) and name not in table:
            key = ("data_settings", name)
            table[name] = value
            draft.merged.origins[key] = f"from {source}"
            if (typed := draft.merged.texts.get(split_key(source))) is not None:
                draft.merged.texts[key] = typed


def _default(draft: Draft, kind: Kind, key: Key) -> Offer[Any] | None:
    offer = draft.catalog.default(kind)
    if offer is None and not draft.unusable:  # one of those may have it
        offered = ", ".join(offer.address for offer in draft.catalog.offers(kind))
        draft.say(
            key,
            f"which one? there are: {offered}"
            if offered
            else "is required: name one, or a plugin that has one with --plugin NAME",
        )
    return offer


def _may_be_elsewhere(draft: Draft, name: str) -> bool:
    """Whether a plugin that cannot be used may be the one that offers this."""
    owner, slash, _ = name.partition("/")
    known = [plugin.name for plugin in draft.catalog.plugins]
    return bool(draft.unusable) and not (slash and owner in known) and ":" not in name
