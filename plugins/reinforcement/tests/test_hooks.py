"""The offers of the plugin: light to list, and every string in them leads somewhere."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import ptrain_reinforcement
import pytest
from ptrain_reinforcement import hooks, settings
from pydantic import TypeAdapter

from plugin_trainer import API_VERSION

OFFERS = [*hooks.ptrain_models(), *hooks.ptrain_data()]
RECIPE = Path(ptrain_reinforcement.__file__).with_name("recipe.toml")


def imported(address: str) -> Any:
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


@pytest.mark.process
def test_the_hook_module_says_which_api_it_speaks_and_imports_nothing_heavy() -> None:
    assert hooks.PTRAIN_API == API_VERSION
    program = (
        "import sys, ptrain_reinforcement.hooks\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'torchmetrics'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        assert [offer.default for offer in offers] == [True]


def test_the_recipe_is_a_run_file_of_known_settings() -> None:
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    assert hooks.ptrain_recipes()[0].file == RECIPE.name
    assert recipe["best"] == {"watch": "val/episode_reward", "mode": "max"}
    for table, settings_class in (
        ("model_settings", settings.QNetworkSettings),
        ("data_settings", settings.EnvironmentSettings),
    ):
        TypeAdapter(settings_class).validate_python(recipe[table])
        assert set(recipe[table]) <= {field.name for field in dataclasses.fields(settings_class)}


@pytest.mark.parametrize(
    ("settings_class", "wrong"),
    [
        (settings.QNetworkSettings, {"discount": 1.1}),
        (settings.QNetworkSettings, {"loss": "mae"}),
        (settings.QNetworkSettings, {"target_rate": 0.0}),
        (settings.QNetworkSettings, {"hidden_sizes": (0,)}),
        (settings.EnvironmentSettings, {"copies": 0}),
        (settings.EnvironmentSettings, {"epsilon_last": -0.1}),
        (settings.EnvironmentSettings, {"replay_capacity": 500}),  # fewer than the first acts
        (settings.EnvironmentSettings, {"evaluation_episodes": -1}),
    ],
)
def test_a_setting_outside_of_its_range_is_refused(settings_class: type, wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TypeAdapter(settings_class).validate_python(wrong)
