"""The JSON Schema of a run file: core's keys, and in their places what plugins offer.

An editor completes and checks with it while the file is written; `ptrain config check` has the last
word. What a schema cannot know, such as the keywords of a class named by its dotted path, passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plugin_trainer.errors import PluginError
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import Catalog, Kind, Offer
from plugin_trainer.registry.names import CORE, TARGET
from plugin_trainer.registry.parts import CALLBACK_SETTINGS, PARTS
from plugin_trainer.settings.json_schema import DIALECT, schemas_of
from plugin_trainer.settings.schema import RunSettings

Schema = dict[str, Any]

_DOTTED_PATH = f"^{TARGET.pattern}$"
_CLASS_OF_TORCH = r"^[A-Z]\w*$"


def run_file_schema(
    catalog: Catalog, *, installed: Iterable[str] = (), unnamed: Mapping[Kind, Iterable[str]]
) -> Schema:
    """The schema of a run file in which these plugins may take part.

    installed  names to suggest for `plugins`
    unnamed    by kind, the addresses of what a run may use whose file names nothing of that kind
    """
    classes: dict[str, type] = {"run": RunSettings}
    for offer in _offers(catalog):
        if (cls := _settings_class(offer)) is not None:
            classes[_key(offer)] = cls
    references, definitions = schemas_of(classes)
    run = dict(definitions.pop("RunSettings"))
    for offer in _offers(catalog):
        if _key(offer) in references:
            # A recipe or --set may give what a run file does not.
            definitions[_definition(references[_key(offer)])].pop("required", None)
    tables = {key: reference for key, reference in references.items() if key != "run"}

    properties = run["properties"]
    properties["plugins"]["items"] = {"type": "string", "examples": sorted(set(installed))}
    conditions: list[Schema] = []
    for kind, part in PARTS.items():
        place, holder = _place(properties, definitions, part.named)
        place[holder].update(_names(catalog, kind))
        properties[part.table].update(_any_of(catalog.offers(kind), tables))
        conditions += _conditions(catalog, kind, tables, unnamed=tuple(unnamed.get(kind, ())))
    properties["callbacks"]["items"] = _callback_names(catalog)
    properties[CALLBACK_SETTINGS].update(_callback_tables(catalog, tables))
    return {
        "$schema": DIALECT,
        "title": "a run file of ptrain",
        **run,
        "allOf": conditions,
        "$defs": definitions,
    }


def _offers(catalog: Catalog) -> Iterator[Offer[Any]]:
    for kind in PARTS:
        yield from catalog.offers(kind)
    yield from catalog.offers("callback")


def _key(offer: Offer[Any]) -> str:
    return f"{type(offer.spec).__name__} {offer.address}"


def _settings_class(offer: Offer[Any]) -> type | None:
    """None too for a plugin whose settings cannot be imported: `ptrain plugins check` says why."""
    try:
        return settings_class(offer)
    except PluginError:
        return None


def _definition(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _place(
    properties: Schema, definitions: Schema, key: tuple[str, ...]
) -> tuple[dict[str, Schema], str]:
    """Where the schema of a key stands: the properties around it, and its name among them."""
    for part in key[:-1]:
        properties = definitions[_definition(properties[part])]["properties"]
    return properties, key[-1]


# What may be named.


def _spellings(catalog: Catalog, kind: Kind) -> dict[str, Offer[Any]]:
    """How the offers may be written: by their addresses, and by bare names that only one has.

    Core's are mostly written bare.
    """
    offers = catalog.offers(kind)
    names = [offer.spec.name for offer in offers]
    found = {}
    for offer in offers:
        spellings = [offer.address]
        if names.count(offer.spec.name) == 1:
            spellings.insert(0 if offer.owner == CORE else 1, offer.spec.name)
        found.update(dict.fromkeys(spellings, offer))
    return found


def _names(catalog: Catalog, kind: Kind) -> Schema:
    patterns = [_DOTTED_PATH, *([_CLASS_OF_TORCH] if kind == "scheduler" else [])]
    offered = [_documented(_spellings(catalog, kind)), {"const": ""}]
    return {"anyOf": [*offered, *({"pattern": pattern} for pattern in patterns)]}


def _documented(spellings: Mapping[str, Offer[Any]]) -> Schema:
    """The names, each with what it stands for, where an editor shows that."""
    summaries = [offer.spec.summary for offer in spellings.values()]
    return {"enum": [*spellings], "x-taplo": {"docs": {"enumValues": summaries}}}


def _callback_names(catalog: Catalog) -> Schema:
    spellings = _spellings(catalog, "callback")
    signed = [f"{sign}{name}" for sign in "+-" for name in spellings]
    return {
        "type": "string",
        "anyOf": [
            _documented(spellings),
            {"enum": signed},
            {"pattern": _DOTTED_PATH.replace("^", "^[+-]?", 1)},
        ],
    }


# What it takes.


def _any_of(offers: Iterable[Offer[Any]], tables: Mapping[str, Schema]) -> Schema:
    """What an editor completes from; which of them it is, the conditions check."""
    known = [tables[_key(offer)] for offer in offers if _key(offer) in tables]
    return {"anyOf": [*_each_once(known), {"type": "object"}]} if known else {}


def _each_once(schemas: Iterable[Schema]) -> list[Schema]:
    found: list[Schema] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    return found


def _conditions(
    catalog: Catalog, kind: Kind, tables: Mapping[str, Schema], *, unnamed: tuple[str, ...]
) -> Iterator[Schema]:
    """One for each offer whose keys are known, and one for a file that names none."""
    named, table = PARTS[kind].named, PARTS[kind].table
    spellings = _spellings(catalog, kind)
    for offer in catalog.offers(kind):
        if _key(offer) not in tables:
            continue
        own = [spelling for spelling, other in spellings.items() if other == offer]
        yield _if(_says(named, {"enum": own}), table, tables[_key(offer)])
    fallbacks = [spellings.get(address) for address in unnamed]
    known = [tables.get(_key(offer)) if offer else None for offer in fallbacks]
    if known and None not in known:
        what = _each_once(schema for schema in known if schema is not None)
        named_none = {"not": _says(named, {})}
        yield _if(named_none, table, what[0] if len(what) == 1 else {"anyOf": what})


def _says(key: tuple[str, ...], schema: Schema) -> Schema:
    """A file has the key, and its value fits."""
    for part in reversed(key):
        schema = {"required": [part], "properties": {part: schema}}
    return schema


def _if(condition: Schema, table: str, schema: Schema) -> Schema:
    return {"if": condition, "then": {"properties": {table: schema}}}


def _callback_tables(catalog: Catalog, tables: Mapping[str, Schema]) -> Schema:
    spellings = _spellings(catalog, "callback")
    return {
        "properties": {
            name: tables.get(_key(offer), {"type": "object"}) for name, offer in spellings.items()
        },
        "patternProperties": {_DOTTED_PATH: {"type": "object"}},
        "additionalProperties": False,
    }
