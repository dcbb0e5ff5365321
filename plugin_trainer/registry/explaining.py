"""What one key of a run file means: its value and origin, its default, what it may be.

Keys of plugins are explained by the dataclass of what the run uses, those of callbacks also where
the run does not use them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plugin_trainer.errors import PtrainError, UnknownOffer
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import Catalog, Kind, Offer
from plugin_trainer.registry.names import CORE, closest
from plugin_trainer.registry.parts import (
    CALLBACK_SETTINGS,
    PARTS,
    TORCH_SCHEDULES,
    is_class_name,
)
from plugin_trainer.settings.describe import Described, describe, summary
from plugin_trainer.settings.layers import Merged, look_up
from plugin_trainer.settings.schema import RunSettings
from plugin_trainer.settings.toml_lines import Key, join_key, split_key
from plugin_trainer.settings.validation import hints_of, unknown
from plugin_trainer.settings.words import dataclass_in, in_words, takes_none, values_of

_KINDS: dict[str, Kind] = {part.table: kind for kind, part in PARTS.items()}


@dataclass(frozen=True)
class Explanation:
    """One key, or one table with its keys.

    value    as TOML has it, False for a table that is off; None where there is none
    origin   where the value was given: "run.toml:7", "--set", "default"
    default  as TOML has it, in text; empty where there is none
    takes    what it may be, in words
    of       the address of the model, callback, ... whose key it is; empty for core's own
    in_run   False for a key of something that this run does not use
    keys     what stands in the table; None for what is no table
    """

    key: str
    value: Any = None
    origin: str = "default"
    default: str = ""
    required: bool = False
    meaning: str = ""
    takes: str = ""
    of: str = ""
    in_run: bool = True
    keys: tuple[Explanation, ...] | None = None


def explain(
    dotted: str, *, catalog: Catalog, merged: Merged, callbacks: Collection[str]
) -> Explanation:
    """The explanation of a key as it is typed: optimizer.learning_rate.

    callbacks  the addresses of those that the run has

    Raises PtrainError for a key that does not exist, with the nearest.
    """
    return _Explainer(catalog, merged, callbacks).explain(dotted)


class _Explainer:
    def __init__(self, catalog: Catalog, merged: Merged, callbacks: Collection[str]) -> None:
        self.catalog = catalog
        self.merged = merged
        self.callbacks = callbacks

    def explain(self, dotted: str) -> Explanation:
        try:
            key = split_key(dotted)
        except ValueError:
            raise PtrainError(
                f"'{dotted}' is not a key",
                hint='write it as in a run file: optimizer.groups."encoder.*".frozen',
            ) from None
        at = self._describe(RunSettings, key[:1], key)
        if len(key) == 1:
            return at
        if key[0] == CALLBACK_SETTINGS:
            offer = self._callback(key)
        elif key[0] in _KINDS:
            offer = self._chosen(key[0], key)
        else:
            return self._below(RunSettings, (), key)
        return self._of_offer(offer, key, depth=2 if key[0] == CALLBACK_SETTINGS else 1)

    # A key of a dataclass.

    def _below(self, cls: type, at: Key, key: Key, *, of: Offer[Any] | None = None) -> Explanation:
        """The rest of the key, below the table at `at` that the dataclass describes."""
        found = self._describe(cls, key[: len(at) + 1], key, of=of)
        hint = hints_of(cls)[key[len(at)]]
        depth = len(at) + 1
        while depth < len(key):
            nested, of_values = dataclass_in(hint), values_of(hint)
            if nested is not None:
                return self._below(nested, key[:depth], key, of=of)
            depth += 1
            if of_values is None:
                raise self._unknown(key, known=(), at=key[: depth - 1])
            hint = of_values
            found = self._free(key[:depth], hint, found, of=of)
        return found

    def _describe(
        self, cls: type, at: Key, typed: Key, *, of: Offer[Any] | None = None
    ) -> Explanation:
        """The key `at`, which is one of the dataclass's."""
        known = {key.key: key for key in describe(cls)}
        if at[-1] not in known:
            raise self._unknown(typed, known=known, at=at[:-1])
        return self._explained(known[at[-1]], hints_of(cls)[at[-1]], at, of=of)

    def _explained(
        self, key: Described, hint: Any, at: Key, *, of: Offer[Any] | None
    ) -> Explanation:
        value, origin = self._value(at, of)
        nested = dataclass_in(hint)
        if value is None and nested is not None and takes_none(hint):
            value = False
        meaning = key.meaning
        if nested is not None and meaning.startswith("see ["):
            meaning = summary(nested) or meaning
        in_run = of is None or type(of.spec).__name__ != "CallbackSpec" or self._has(of)
        return Explanation(
            key=join_key(at),
            value=key.value if value is None else value,
            origin=origin,
            default=key.default,
            required=key.required,
            meaning=meaning,
            takes=in_words(hint),
            of=of.address if of else "",
            in_run=in_run,
            keys=self._keys(nested, hint, at, of),
        )

    def _keys(
        self, nested: type | None, hint: Any, at: Key, of: Offer[Any] | None
    ) -> tuple[Explanation, ...] | None:
        """What stands in a table: the keys of its dataclass, or those that were given."""
        if at[0] in _KINDS and len(at) == 1:
            return self._keys_of_chosen(at)
        if at == (CALLBACK_SETTINGS,):
            return tuple(self._table_of(offer) for offer in self.catalog.offers("callback"))
        if nested is not None:
            return self._keys_of(nested, at, of)
        of_values = values_of(hint)
        if of_values is None:
            return None
        outer = Explanation(join_key(at))
        return tuple(self._free(key, of_values, outer, of=of) for key in self._given_in(at))

    def _keys_of(self, cls: type, at: Key, of: Offer[Any] | None) -> tuple[Explanation, ...]:
        """The keys of a dataclass whose table stands at `at`."""
        hints = hints_of(cls)
        return tuple(
            self._explained(key, hints[key.key], (*at, key.key), of=of) for key in describe(cls)
        )

    def _given_in(self, at: Key) -> list[Key]:
        """The keys that were given in a table."""
        given = look_up(self.merged.values, at)
        return [(*at, name) for name in given] if isinstance(given, Mapping) else []

    def _free(
        self, at: Key, hint: Any, around: Explanation, *, of: Offer[Any] | None
    ) -> Explanation:
        """A key that the user has named."""
        value, origin = self._value(at, of)
        nested = dataclass_in(hint)
        return Explanation(
            key=join_key(at),
            value=value,
            origin=origin if value is not None else "not given",
            meaning=summary(nested) if nested else around.meaning,
            takes=in_words(hint),
            of=around.of,
            in_run=around.in_run,
            keys=self._keys(nested, hint, at, of),
        )

    def _value(self, at: Key, of: Offer[Any] | None) -> tuple[Any, str]:
        """What was given for a key, and where; None and "default" if nothing was."""
        for spelling in self._spellings(at, of):
            value = look_up(self.merged.values, spelling)
            if value is not None:
                return value, self.merged.place_of(spelling)
        sources = getattr(of.spec, "defaults_from", {}) if of else {}
        if len(at) == 2 and at[1] in sources:
            value = look_up(self.merged.values, split_key(sources[at[1]]))
            if value is not None:
                return value, f"from {sources[at[1]]}"
        return None, "default"

    def _spellings(self, at: Key, of: Offer[Any] | None) -> list[Key]:
        """A callback's table may stand under its address or under its bare name."""
        if of is None or at[0] != CALLBACK_SETTINGS:
            return [at]
        names = dict.fromkeys([at[1], of.address, of.spec.name])
        return [(CALLBACK_SETTINGS, name, *at[2:]) for name in names]

    # What a plugin offers.

    def _of_offer(self, offer: Offer[Any], key: Key, *, depth: int) -> Explanation:
        """A key in the table of an offer, or that table."""
        cls = settings_class(offer)
        if len(key) == depth:
            return self._table_of(offer)
        if cls is not None:
            return self._below(cls, key[:depth], key, of=offer)
        value, origin = self._value(key, offer)
        return Explanation(
            key=join_key(key),
            value=value,
            origin=origin if value is not None else "not given",
            meaning=f"a keyword argument of {offer.spec.target}",
            takes="what that takes",
            of=offer.address,
        )

    def _table_of(self, offer: Offer[Any]) -> Explanation:
        """The table of a callback."""
        name = offer.spec.name if offer.owner == CORE else offer.address
        cls = settings_class(offer)
        at = (CALLBACK_SETTINGS, name)
        return Explanation(
            key=join_key(at),
            origin=self._value(at, offer)[1],
            meaning=offer.spec.summary,
            takes="a table",
            of=offer.address,
            in_run=self._has(offer),
            keys=self._keys_of(cls, at, offer) if cls is not None else (),
        )

    def _has(self, offer: Offer[Any]) -> bool:
        return offer.address in self.callbacks

    def _callback(self, key: Key) -> Offer[Any]:
        try:
            return self.catalog.find("callback", key[1])
        except UnknownOffer as error:
            raise PtrainError(
                f"no such key '{join_key(key)}': {error.message}", hint=error.hint
            ) from None

    def _keys_of_chosen(self, at: Key) -> tuple[Explanation, ...]:
        try:
            offer = self._chosen(at[0], at)
        except PtrainError:
            return ()
        cls = settings_class(offer)
        if cls is not None:
            return self._keys_of(cls, at, offer)
        return tuple(self._of_offer(offer, key, depth=1) for key in self._given_in(at))

    def _chosen(self, table: str, key: Key) -> Offer[Any]:
        """The model, data module or schedule that the run uses."""
        kind = _KINDS[table]
        part = PARTS[kind]
        name = look_up(self.merged.values, part.named) or part.fallback
        if isinstance(name, str) and name:
            if kind == "scheduler" and is_class_name(name):
                name = f"{TORCH_SCHEDULES}:{name}"
            return self.catalog.find(kind, name)
        offer = self.catalog.default(kind)
        if offer is None:
            raise PtrainError(
                f"'{join_key(key)}' depends on {join_key(part.named)}, which nothing says",
                hint="name a run file, or a plugin with --plugin NAME",
            )
        return offer

    # A key that does not exist.

    def _unknown(self, typed: Key, *, known: Collection[str], at: Key) -> PtrainError:
        dotted = join_key(typed)
        everything = [*self._all_keys()]
        same_name = [key for key in everything if split_key(key)[-1] == typed[-1]]
        near = same_name[:3] or [*filter(None, [closest(dotted, everything)])]
        hint = []
        if near:
            hint.append(f"did you mean {' or '.join(repr(key) for key in near)}?")
        elif known:
            hint.append(unknown(typed[len(at)], known, what="key"))
        elif at:
            hint.append(f"{join_key(at)} is no table")
        return PtrainError(f"no such key '{dotted}'", hint=hint)

    def _all_keys(self) -> Iterator[str]:
        yield from _keys_below(RunSettings, ())
        for table in _KINDS:
            try:
                cls = settings_class(self._chosen(table, (table,)))
            except PtrainError:
                continue
            if cls is not None:
                yield from _keys_below(cls, (table,))
        for offer in self.catalog.offers("callback"):
            table_of = self._table_of(offer)
            yield from (key.key for key in table_of.keys or ())


def _keys_below(cls: type, at: Key) -> Iterator[str]:
    for name, hint in hints_of(cls).items():
        yield join_key((*at, name))
        nested = dataclass_in(hint)
        if nested is not None and dataclasses.is_dataclass(nested):
            yield from _keys_below(nested, (*at, name))
