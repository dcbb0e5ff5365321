"""The offers of the plugin: light to list, and every string in them leads somewhere."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import ptrain_dactbert
import pytest
from ptrain_dactbert import hooks, settings
from pydantic import TypeAdapter

from plugin_trainer import API_VERSION

OFFERS = [*hooks.ptrain_models(), *hooks.ptrain_data(), *hooks.ptrain_callbacks()]
RECIPE = Path(ptrain_dactbert.__file__).with_name("recipe.toml")


def imported(address: str) -> Any:
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


def test_importing_the_hooks_imports_no_torch() -> None:
    code = (
        "import sys, ptrain_dactbert.hooks as h;"
        "h.ptrain_models(), h.ptrain_data(), h.ptrain_callbacks(), h.ptrain_recipes();"
        "import ptrain_dactbert.settings;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'torchmetrics')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_written_for_the_current_api() -> None:
    assert hooks.PTRAIN_API == API_VERSION


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.name)
def test_every_target_and_every_settings_class_can_be_imported(offer: Any) -> None:
    assert callable(imported(offer.target))
    assert dataclasses.is_dataclass(imported(offer.settings))
    assert offer.summary


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.name)
def test_every_setting_is_explained_in_the_docstring(offer: Any) -> None:
    settings_class = imported(offer.settings)
    lines = settings_class.__doc__.splitlines()
    explained = {line.split()[0] for line in lines if line[4:5].strip() and line.startswith("    ")}
    assert {field.name for field in dataclasses.fields(settings_class)} <= explained


def test_there_is_one_default_model_data_module_and_recipe() -> None:
    for offers in (hooks.ptrain_models(), hooks.ptrain_data(), hooks.ptrain_recipes()):
        assert [offer.default for offer in offers].count(True) == 1


@pytest.mark.parametrize("offer", hooks.ptrain_recipes(), ids=lambda offer: offer.name)
def test_a_recipe_is_a_run_file_of_known_settings(offer: Any) -> None:
    recipe = tomllib.loads(RECIPE.with_name(offer.file).read_text(encoding="utf-8"))
    assert recipe["model"] == "dactbert/classifier"
    for table, settings_class in (
        ("model_settings", settings.ClassifierSettings),
        ("data_settings", settings.TextClassificationSettings),
    ):
        TypeAdapter(settings_class).validate_python(recipe[table])
        assert set(recipe[table]) <= {field.name for field in dataclasses.fields(settings_class)}


@pytest.mark.parametrize(
    ("settings_class", "wrong"),
    [
        (settings.ClassifierSettings, {"pooling": "max"}),
        (settings.ClassifierSettings, {"tau": -0.1}),
        (settings.ClassifierSettings, {"regulariser": "sum_q"}),
        (settings.ClassifierSettings, {"delta": 1.5}),
        (settings.ClassifierSettings, {"initial_depth": 0.5}),
        (settings.TextClassificationSettings, {"batch_size": 0}),
        (settings.TextClassificationSettings, {"text": -1}),
        (settings.TextClassificationSettings, {"header": "maybe"}),
    ],
)
def test_a_setting_outside_of_its_range_is_refused(settings_class: type, wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TypeAdapter(settings_class).validate_python(wrong)
