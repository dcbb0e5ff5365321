"""The searches that the plugin ships, and the staged one of its examples: what they look for, that
every value can be trained with, and that they run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ptrain_dactbert
import pytest
from ptrain_dactbert import hooks

from plugin_trainer.cli.config_check import problems_in
from plugin_trainer.cli.main import main
from plugin_trainer.configuration import configure
from plugin_trainer.settings.layers import read_toml
from plugin_trainer.tuning.checking import problems_in_tuning
from plugin_trainer.tuning.studies import open_study

PACKAGE = Path(ptrain_dactbert.__file__).parent
RECIPE = tomllib.loads((PACKAGE / "recipe.toml").read_text(encoding="utf-8"))
SPACES = {space.name: space for space in hooks.ptrain_spaces()}
EXAMPLE = PACKAGE.parent / "examples/stages.toml"

TINY = {
    "model_settings.hidden_size": "16",
    "model_settings.num_heads": "2",
    "data_settings.examples": "200",
    "data_settings.validation_examples": "50",
    "data_settings.max_tokens": "16",
    "length": "4 steps",
    "evaluate": "2 steps",
    "save": "2 steps",
}


def table_of(name: str) -> dict[str, Any]:
    """What a space says to tune."""
    tune: dict[str, Any] = tomllib.loads((PACKAGE / SPACES[name].file).read_text("utf-8"))["tune"]
    return tune


@pytest.mark.parametrize("name", SPACES)
def test_every_value_of_a_space_is_one_that_the_recipe_takes(name: str) -> None:
    sources = partial(configure, plugins=["dactbert"], space=name)
    assert problems_in_tuning(sources(), sources, more=problems_in) == []


def test_tau_is_not_searched_by_a_loss_alone() -> None:
    tune = table_of("loss")
    assert [its["metric"] for its in tune["objectives"]] == ["val/task_loss"]
    assert tune["space"].keys() == {"optimizer.learning_rate", "model_settings.initial_depth"}
    assert SPACES["loss"].default


def test_tau_is_searched_where_depth_counts_as_well() -> None:
    tune = table_of("loss_and_depth")
    assert [its["metric"] for its in tune["objectives"]] == ["val/task_loss", "val/mean_exit_block"]
    assert "model_settings.tau" in tune["space"]


@pytest.mark.parametrize("name", SPACES)
def test_the_depths_of_a_space_are_depths_of_the_recipes_encoder(
    name: str, make_model: Callable[..., Any]
) -> None:
    depth = table_of(name)["space"]["model_settings.initial_depth"]
    num_blocks = RECIPE["model_settings"]["num_blocks"]
    for begun in (depth["low"], depth["high"]):
        make_model(num_blocks=num_blocks, initial_depth=begun)
    assert 1 < depth["low"] < RECIPE["model_settings"]["initial_depth"] < depth["high"] < num_blocks


@pytest.mark.parametrize("name", SPACES)
def test_the_recipes_own_values_are_in_the_space(name: str) -> None:
    for key, its in table_of(name)["space"].items():
        table, _, last = key.partition(".")
        assert its["low"] <= RECIPE[table][last] <= its["high"], key


@pytest.fixture
def ptrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """Call `ptrain` in an empty folder; returns what it writes to standard output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 0
        return str(capsys.readouterr().out)

    return call


def tiny(*but: str) -> list[str]:
    """The settings of a run that takes no time."""
    values = {key: value for key, value in TINY.items() if key not in but}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_a_front_is_printed_and_drawn(ptrain: Callable[..., str]) -> None:
    space = ["--plugin", "dactbert", "--space", "loss_and_depth"]
    ptrain("tune", *space, "--study", "front", "--trials", "3", *tiny())
    (stage,) = open_study("front").stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 3
    assert all(1 <= trial.values[1] <= 6 for trial in stage.trials)
    out = ptrain("study", "best", "front")
    assert "--set model_settings.tau=" in out
    assert Path("studies/front/front.png").is_file()


def test_the_example_of_stages_goes_from_winner_to_winner(ptrain: Callable[..., str]) -> None:
    ptrain("tune", str(EXAMPLE), "--study", "stages", "--trials", "2", *tiny())
    units, training, price = open_study("stages").stages
    assert [stage.name for stage in (units, training, price)] == ["units", "training", "price"]
    won = {**units.winner().params, **training.winner().params, **price.winner().params}
    for trial in price.trials:
        run = tomllib.loads((trial.folder / "run.toml").read_text(encoding="utf-8"))
        assert run["model_settings"]["pooling"] == won["model_settings.pooling"]
        assert run["optimizer"]["weight_decay"] == won["optimizer.weight_decay"]
    out = ptrain("study", "best", "stages")
    assert out.count("--set ") == len(won) == 5
    best = configure(read_toml(Path("studies/stages/best.toml")))
    assert best.settings.optimizer.learning_rate == won["optimizer.learning_rate"]
