"""Settings written down are the settings that were used."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugin_trainer.settings import EmaSettings, OptimizerSettings, RunSettings
from plugin_trainer.settings.render import flatten, to_toml, to_values
from plugin_trainer.settings.validation import validate


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Settings as a plugin may have them, with a key that core has too."""

    log: Path | None = None
    save: str | None = None
    folder: Path = Path("data/a")
    rates: tuple[float, ...] = (0.1, 1e-5)
    free: Mapping[str, Any] = field(default_factory=lambda: {"a": [1, {"b": None}], "n": None})


def read_back(cls, settings):
    instance, problems = validate(cls, tomllib.loads(to_toml(to_values(settings))), place_of=str)
    assert problems == []
    return instance


def test_the_default_settings_read_back_as_themselves():
    assert read_back(RunSettings, RunSettings()) == RunSettings()


def test_unusual_settings_read_back_as_themselves():
    unusual, problems = validate(
        RunSettings,
        {
            "name": 'a "quoted" name — with a dash',
            "length": "0.1234567 epochs",
            "evaluate": "never",
            "save": "never",
            "log": "never",
            "keep": "all",
            "callbacks": ["-tensorboard", "x/y"],
            "optimizer": {"learning_rate": 1e-30, "no_decay": ["*.bias"], "settings": {"a": [1]}},
            "schedule": {"warmup": "12.5 %"},
            "ema": {"decay": 0.9999999},
            "callback_settings": {"dactbert/exit statistics": {"deep": {"er": 1}}},
        },
        place_of=str,
    )
    assert problems == []
    assert read_back(RunSettings, unusual) == unusual


def test_what_is_off_is_left_out_except_for_cadences():
    values = to_values(RunSettings(evaluate=None))
    assert "ema" not in values
    assert values["evaluate"] == "never"


def test_never_is_written_only_for_the_runs_own_cadences():
    assert to_values(Plugins()) == {
        "folder": "data/a",
        "rates": [0.1, 1e-5],
        "free": {"a": [1, {}]},
    }


def test_each_line_says_where_its_value_came_from():
    settings = RunSettings(seed=7, optimizer=OptimizerSettings(name="sgd"), ema=EmaSettings())
    text = to_toml(
        to_values(settings),
        origins={("seed",): "--set", ("optimizer", "name"): "run.toml:3", ("ema",): "run.toml:9"},
    )
    rows = {row.partition("  #")[0].strip(): row.rpartition("# ")[2] for row in text.splitlines()}
    assert rows["seed = 7"] == "--set"
    assert rows['name = "sgd"'] == "run.toml:3"
    assert rows["decay = 0.999"] == "run.toml:9"
    assert rows["learning_rate = 0.001"] == "default"
    assert tomllib.loads(text) == to_values(settings)


def test_a_value_with_unusual_line_breaks_is_not_torn_apart():
    values = {"name": "a\u2028b\x85c"}
    assert tomllib.loads(to_toml(values, origins={})) == values


def test_flattening_gives_each_leaf_its_dotted_key():
    assert flatten({"a": {"b/c": {"d": 1}}, "e": [1], "f": {}}) == {'a."b/c".d': 1, "e": [1]}
