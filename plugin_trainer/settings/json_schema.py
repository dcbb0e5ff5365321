"""Settings dataclasses as JSON Schema (draft 2020-12), for editors: every key with its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from plugin_trainer.settings.describe import describe, summary

DIALECT = GenerateJsonSchema.schema_dialect


def schemas_of(classes: Mapping[str, type]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The schema of each dataclass under its name, and the definitions they all refer to."""
    wanted: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (name, "validation", TypeAdapter(cls)) for name, cls in classes.items()
    ]
    found, shared = TypeAdapter.json_schemas(wanted, schema_generator=_Generator)
    return {name: found[name, "validation"] for name in classes}, shared.get("$defs", {})


class _Generator(GenerateJsonSchema):
    """pydantic's schema, as TOML and our docstrings have it."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        """TOML has no null: what may be None may be left out."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Defaults are added with the meanings, as TOML has them."""
        return self.generate_inner(schema["schema"])

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """A plugin's type that JSON Schema cannot say: an editor lets anything pass."""
        return {}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A key's name is its title."""
        return False

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """Only known keys, each with its meaning and default."""
        found = super().dataclass_schema(schema)
        cls: type = schema["cls"]
        found.pop("title", None)
        found["additionalProperties"] = False
        found["description"] = summary(cls)
        properties = found.get("properties", {})
        for key in describe(cls):
            if key.key not in properties:
                continue
            about = {"description": key.meaning} if key.meaning else {}
            if key.value is not None:
                about["default"] = key.value
            properties[key.key] = {**properties[key.key], **about}
        return found
