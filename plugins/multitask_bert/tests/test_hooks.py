"""The offers of the plugin: light to list, and every string in them leads somewhere."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import ptrain_multitask_bert
import pytest
from ptrain_multitask_bert import hooks, settings
from pydantic import TypeAdapter

from plugin_trainer import API_VERSION
from plugin_trainer.cli.main import main

OFFERS = [*hooks.ptrain_models(), *hooks.ptrain_data(), *hooks.ptrain_callbacks()]
RECIPE = Path(ptrain_multitask_bert.__file__).with_name("recipe.toml")


def imported(address: str) -> Any:
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


def test_importing_the_hooks_imports_no_torch() -> None:
    code = (
        "import sys, ptrain_multitask_bert.hooks as h;"
        "h.ptrain_models(), h.ptrain_data(), h.ptrain_callbacks(), h.ptrain_recipes();"
        "import ptrain_multitask_bert.settings, ptrain_multitask_bert.heads;"
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


@pytest.mark.parametrize(
    "settings_class",
    [getattr(settings, name) for name in settings.__all__],
    ids=lambda settings_class: settings_class.__name__,
)
def test_every_setting_is_explained_in_the_docstring(settings_class: Any) -> None:
    lines = settings_class.__doc__.splitlines()
    explained = {line.split()[0] for line in lines if line[4:5].strip() and line.startswith("    ")}
    assert {field.name for field in dataclasses.fields(settings_class)} <= explained


def test_there_is_one_default_model_data_module_and_recipe() -> None:
    for offers in (hooks.ptrain_models(), hooks.ptrain_data(), hooks.ptrain_recipes()):
        assert [offer.default for offer in offers] == [True]


def test_the_recipe_is_a_run_file_of_known_settings() -> None:
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    assert hooks.ptrain_recipes()[0].file == RECIPE.name
    for table, settings_class in (
        ("model_settings", settings.SharedEncoderSettings),
        ("data_settings", settings.MultitaskSettings),
    ):
        TypeAdapter(settings_class).validate_python(recipe[table])
        assert set(recipe[table]) <= {field.name for field in dataclasses.fields(settings_class)}


def test_the_plugin_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "multitask_bert"]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("settings_class", "wrong"),
    [
        (settings.SharedEncoderSettings, {"pooling": "max"}),
        (settings.SharedEncoderSettings, {"dropout": 1.0}),
        (settings.SharedEncoderSettings, {"num_blocks": 0}),
        (settings.ExportSettings, {"weights": ["worst"]}),
        (settings.ExportSettings, {"folder": ""}),
    ],
)
def test_a_setting_outside_of_its_range_is_refused(settings_class: type, wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TypeAdapter(settings_class).validate_python(wrong)
