"""A key that nothing reads would be dropped without a word."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import plugin_trainer
from plugin_trainer.settings import schema

PACKAGE = Path(plugin_trainer.__file__).parent


@pytest.fixture(scope="module")
def read_names() -> set[object]:
    """Every attribute and every key that the code outside of the schema reads."""
    names: set[object] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "schema.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return names


# vars(settings.mixture) and dataclasses.asdict(settings.compile) hand all of their keys on.
WHOLE = {schema.MixtureSettings, schema.CompileSettings}
CLASSES = [
    cls
    for cls in vars(schema).values()
    if dataclasses.is_dataclass(cls) and cls.__module__ == schema.__name__ and cls not in WHOLE
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_key_is_read_somewhere(cls, read_names):
    assert [field.name for field in dataclasses.fields(cls) if field.name not in read_names] == []


def test_the_schema_is_all_of_it():
    assert schema.RunSettings in CLASSES and len(CLASSES) > 8
