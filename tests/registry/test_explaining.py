"""A key is explained from the dataclass it belongs to, with its value in a run and its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin_trainer.configuration import callbacks_in, open_to_explain
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.explaining import explain
from plugin_trainer.settings.layers import from_assignments, read_toml

HOOKS = """
    from plugin_trainer import CallbackSpec, DataSpec, ModelSpec, RecipeSpec

    PTRAIN_API = 1
    S = "{package}.settings"

    def ptrain_models():
        return [ModelSpec(name="net", target="x:X", settings=f"{S}:Net", default=True),
                ModelSpec(name="plain", target="x:X")]

    def ptrain_data():
        return [DataSpec(name="rows", target="x:X", settings=f"{S}:Rows",
                         defaults_from={"tokenizer": "model_settings.encoder"})]

    def ptrain_callbacks():
        return [CallbackSpec(name="count", target="x:X", settings=f"{S}:Count", summary="counts")]

    def ptrain_recipes():
        return [RecipeSpec(name="small", file="recipe.toml", default=True)]
"""

SETTINGS = '''
    from dataclasses import dataclass
    from typing import Annotated, Literal
    from pydantic import Field

    @dataclass(frozen=True, kw_only=True)
    class Net:
        """A net.

        encoder  where it comes from
        width    how wide
        pooling  how
        """

        encoder: str = "none"
        width: Annotated[int, Field(ge=1)] = 8
        pooling: Literal["mean", "cls"] = "mean"

    @dataclass(frozen=True, kw_only=True)
    class Rows:
        train: str
        tokenizer: str = ""

    @dataclass(frozen=True, kw_only=True)
    class Count:
        """Counts.

        every  how often
        """

        every: int = 1
'''

RECIPE = 'model = "vision/net"\ndata = "vision/rows"\n[model_settings]\nwidth = 4\n'


@pytest.fixture
def vision(installed):
    installed.install("vision", hooks=HOOKS, files={"settings.py": SETTINGS, "recipe.toml": RECIPE})
    return installed


RUN_FILE = """seed = 5
ema.decay = 0.9
callbacks = ["count"]
[callback_settings."vision/count"]
every = 3
[optimizer.groups."a.*"]
frozen = true
[optimizer.settings]
betas = [0.9, 0.98]
"""


def explained(key: str, *assignments: str, run_file: str = "", plugins=()):
    path = Path("run.toml")
    path.write_text(run_file)
    overrides = from_assignments(assignments) if assignments else None
    layer = read_toml(path) if run_file else None
    catalog, merged = open_to_explain(layer, plugins=plugins, overrides=overrides)
    callbacks = callbacks_in(catalog, merged)
    return explain(key, catalog=catalog, merged=merged, callbacks=callbacks)


def refused(key: str, *assignments: str, **options) -> str:
    with pytest.raises(PtrainError) as caught:
        explained(key, *assignments, **options)
    return str(caught.value)


def test_without_a_run_a_key_of_core_has_its_default(installed):
    found = explained("accumulate")
    assert (found.value, found.origin, found.default) == (1, "default", "1")
    assert found.takes == "a whole number, 1 or more"
    assert found.meaning == "micro-batches in one optimizer step"


@pytest.mark.parametrize(
    ("key", "value", "origin"),
    [
        ("seed", 5, "run.toml:1"),
        ("ema.decay", 0.9, "run.toml:2"),
        ("ema.warmup", True, "default"),
        ("compile", False, "default"),
        ("callbacks", ["count"], "run.toml:3"),
        ("callback_settings.count.every", 3, "run.toml:5"),
        ('callback_settings."vision/count".every', 3, "run.toml:5"),
        ('optimizer.groups."a.*".frozen', True, "run.toml:7"),
        ('optimizer.groups."a.*".weight_decay', None, "default"),
        ("optimizer.settings.betas", [0.9, 0.98], "run.toml:9"),
        ("optimizer.settings.eps", None, "not given"),
        ("model_settings.width", 4, "vision's recipe:4"),
        ("model_settings.encoder", "bert", "--set"),
        ("data_settings.tokenizer", "bert", "from model_settings.encoder"),
    ],
)
def test_the_value_in_a_run_has_its_origin(vision, key, value, origin):
    found = explained(key, "model_settings.encoder=bert", run_file=RUN_FILE, plugins=["vision"])
    assert (found.value, found.origin) == (value, origin)
    assert found.in_run


def test_a_key_of_a_plugin_is_explained_by_the_plugins_dataclass(vision):
    found = explained("model_settings.pooling", plugins=["vision"])
    assert found.takes == '"mean" or "cls"'
    assert (found.meaning, found.of, found.default) == ("how", "vision/net", '"mean"')
    assert explained("data_settings.train", plugins=["vision"]).required


def test_a_callback_that_the_run_does_not_list_is_not_part_of_it(vision):
    found = explained("callback_settings.count.every", plugins=["vision"])
    assert not found.in_run and found.default == "1" and found.meaning == "how often"
    assert not explained("callback_settings.early_stopping.patience").in_run
    assert explained("callback_settings.progress_bar.mode").in_run
    assert not explained(
        "callback_settings.progress_bar.mode", "callbacks=['-progress_bar']"
    ).in_run


def test_a_table_has_its_keys(vision):
    def keys(key, **options):
        return [below.key.removeprefix(f"{key}.") for below in explained(key, **options).keys]

    assert keys("ema") == ["decay", "warmup", "buffers"]
    assert keys("optimizer.groups", run_file=RUN_FILE) == ['"a.*"']
    assert keys('optimizer.groups."a.*"') == ["learning_rate", "weight_decay", "frozen"]
    assert keys("model_settings", plugins=["vision"]) == ["encoder", "width", "pooling"]
    assert keys("model_settings") == []
    assert keys("schedule_settings") == ["final_factor"]
    assert keys("callback_settings.early_stopping")[:2] == ["watch", "mode"]
    assert '"vision/count"' in keys("callback_settings", plugins=["vision"])


def test_keywords_of_a_target_without_a_dataclass_are_said_to_be_such(vision):
    plain = explained("model_settings.x", "model=plain", "model_settings.x=1", plugins=["vision"])
    assert (plain.value, plain.meaning) == (1, "a keyword argument of x:X")
    torchs = explained("schedule_settings.max_lr", "schedule.name=OneCycleLR")
    assert torchs.of == "torch.optim.lr_scheduler:OneCycleLR"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("learning_rate", "did you mean 'optimizer.learning_rate'?"),
        ("optimizer.learnig_rate", "did you mean 'optimizer.learning_rate'?"),
        ("patience", "did you mean 'callback_settings.early_stopping.patience'?"),
        ("callback_settings.early_stoping.x", "no callback 'early_stoping'"),
        ("model_settings.pool", "did you mean 'model_settings.pooling'?"),
        ("seed.x", "no such key 'seed.x'"),
        ('optimizer.groups."a".lr', "no such key 'optimizer.groups.a.lr'"),
        ("a..b", "'a..b' is not a key"),
        ("", "'' is not a key"),
    ],
)
def test_a_key_that_does_not_exist_is_told_with_the_nearest(vision, key, said):
    assert said in refused(key, plugins=["vision"])


def test_a_key_of_a_model_that_nothing_names_says_what_it_needs(installed):
    assert "--plugin NAME" in refused("model_settings.encoder")
