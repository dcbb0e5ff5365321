"""An editor with the schema of a run file accepts what is right and marks what is not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from plugin_trainer.cli.new import write_plugin
from plugin_trainer.configuration import configure, open_to_explain, used_unasked
from plugin_trainer.registry.run_schema import run_file_schema
from plugin_trainer.settings.layers import read_toml
from plugin_trainer.settings.render import to_toml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
DACTBERT = ROOT / "plugins" / "dactbert"


def schema_with(*plugins: str) -> dict:
    catalog, _ = open_to_explain(plugins=plugins)
    schema = run_file_schema(catalog, unnamed=used_unasked(plugins=plugins))
    jsonschema.Draft202012Validator.check_schema(schema)
    return json.loads(json.dumps(schema))  # as it is written to a file


def marked(schema: dict, text: str) -> list[str]:
    """The keys that an editor marks, dotted."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(tomllib.loads(text))
    return sorted(".".join(map(str, error.absolute_path)) for error in errors)


@pytest.fixture(scope="module")
def core():
    return schema_with()


@pytest.fixture(scope="module")
def dactbert():
    return schema_with(str(DACTBERT))


@pytest.fixture(scope="module")
def ours():
    """The schema with every plugin of this project."""
    return schema_with(*(str(file.parent) for file in ROOT.glob("plugins/*/pyproject.toml")))


def run_files_in_the_documentation() -> list:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/*.md")]
    blocks = [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in pages
        for number, text in enumerate(
            re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        )
        if "[project" not in text
    ]
    assert blocks
    return blocks


@pytest.mark.parametrize("text", run_files_in_the_documentation())
def test_every_run_file_in_the_documentation_is_right(ours, text):
    assert marked(ours, text) == []


def test_the_recipe_of_a_plugin_is_right(dactbert):
    recipe = (DACTBERT / "ptrain_dactbert" / "recipe.toml").read_text(encoding="utf-8")
    assert marked(dactbert, recipe) == []


def test_the_recipe_that_the_template_writes_is_right(installed):
    folder = write_plugin("my_rings")
    schema = schema_with(f"./{folder}")
    recipe = (folder / "ptrain_my_rings" / "recipe.toml").read_text(encoding="utf-8")
    assert marked(schema, recipe) == []
    assert marked(schema, recipe.replace("hidden_width", "hidden_with")) == ["model_settings"]


def test_the_settings_that_a_run_writes_down_are_right(dactbert, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('callbacks = ["early_stopping"]\n[optimizer.groups."encoder.*"]\nfrozen = true')
    written = to_toml(configure(read_toml(file), plugins=[str(DACTBERT)]).values())
    assert marked(dactbert, written) == []


RIGHT = """
    compile = true
    ---
    compile = {mode = "max-autotune"}
    ---
    init_from = "runs/first"
    ---
    init_from = false
    ema = false
    ---
    keep = "all"
    evaluate = "never"
    length = "20_000 steps"
    save = ".5 epoch"
    ---
    model = "my_lab.nets:Net"
    model_settings = {anything = 1}
    ---
    schedule.name = "OneCycleLR"
    schedule_settings = {max_lr = 1}
    ---
    schedule.name = "core/linear"
    schedule_settings.final_factor = 0.1
    ---
    callbacks = ["early_stopping", "-core/progress_bar", "my_lab.watch:Watch"]
    callback_settings.early_stopping.patience = 3
    callback_settings."my_lab.watch:Watch".x = 3
    ---
    optimizer.no_decay = ["*.bias"]
    optimizer.settings.betas = [0.9, 0.98]
    activation_checkpointing = ["blocks.*"]
    ---
    schedule.warmup = "10 %"
"""

WRONG = [
    ("lenght = 1", [""]),
    ("length = 3", ["length"]),
    ('length = "3"', ["length"]),
    ('length = "3 minutes"', ["length"]),
    ('length = "10 %"', ["length"]),
    ('schedule.warmup = "10"', ["schedule.warmup"]),
    ('accumulate = "3"', ["accumulate"]),
    ("accumulate = 0", ["accumulate"]),
    ("seed = 1.5", ["seed"]),
    ("optimizer.learning_rate = 0", ["optimizer.learning_rate"]),
    ("optimizer.lr = 1", ["optimizer"]),
    ('optimizer.groups."a.*".lr = 1', ["optimizer.groups.a.*"]),
    ('compile = "no"', ["compile"]),
    ("init_from = 3", ["init_from"]),
    ("ema = true", ["ema"]),
    ("keep = 0", ["keep"]),
    ('precision = "bf61"', ["precision"]),
    ('model = "nett"', ["model"]),
    ('schedule.name = "linaer"', ["schedule.name"]),
    ('schedule.name = "constant"\nschedule_settings.final_factor = 0.1', ["schedule_settings"]),
    ("schedule_settings.final_facto = 0.1", ["schedule_settings"]),
    ('callbacks = ["early_stoping"]', ["callbacks.0"]),
    ("callback_settings.early_stoping = {}", ["callback_settings"]),
    (
        "callback_settings.early_stopping.patience = 0",
        ["callback_settings.early_stopping.patience"],
    ),
    ("callback_settings.early_stopping.wait = 1", ["callback_settings.early_stopping"]),
]


@pytest.mark.parametrize("text", RIGHT.split("---"))
def test_what_is_right_is_not_marked(core, text):
    assert marked(core, text) == []


@pytest.mark.parametrize(("text", "keys"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_marked(core, text, keys):
    assert marked(core, text) == keys


@pytest.mark.parametrize(
    "naming", ['model = "dactbert/classifier"\n', 'model = "classifier"\n', ""]
)
def test_the_settings_of_a_chosen_model_are_the_plugins(dactbert, naming):
    assert marked(dactbert, f"{naming}model_settings.pooling = 'cls'") == []
    assert marked(dactbert, f"{naming}model_settings.pooling = 'x'") == ["model_settings.pooling"]
    assert marked(dactbert, f"{naming}model_settings.poling = 'x'") == ["model_settings"]


def test_every_key_has_its_meaning_and_its_default(core):
    properties = core["properties"]
    assert all(entry.get("description") for entry in properties.values())
    assert properties["accumulate"]["default"] == 1
    assert properties["evaluate"]["default"] == "1 epoch"
    assert "default" not in properties["ema"]
    stopping = core["$defs"]["EarlyStoppingSettings"]["properties"]
    assert stopping["patience"]["minimum"] == 1 and stopping["patience"]["default"] == 3
    assert "null" not in json.dumps(core)


def test_an_editor_completes_the_names_of_what_is_offered(dactbert):
    offered = dactbert["properties"]["model"]["anyOf"][0]["enum"]
    assert offered == ["dactbert/classifier", "classifier"]
    (table, _) = dactbert["properties"]["data_settings"]["anyOf"]
    assert table == {"$ref": "#/$defs/TextClassificationSettings"}


def test_two_plugins_with_classes_of_one_name_keep_their_own(installed):
    hooks = """
        from plugin_trainer import ModelSpec
        PTRAIN_API = 1
        def ptrain_models():
            return [ModelSpec(name="net", target="x:X", settings="{package}.settings:NetSettings")]
    """
    for name, key in (("one", "width"), ("two", "depth")):
        settings = (
            "from dataclasses import dataclass\n@dataclass\n"
            f"class NetSettings:\n    {key}: int = 1\n    needed: int = 0\n"
        )
        installed.install(name, hooks=hooks, files={"settings.py": settings})
    schema = schema_with("one", "two")
    assert marked(schema, 'model = "one/net"\nmodel_settings.width = 2') == []
    assert marked(schema, 'model = "one/net"\nmodel_settings.depth = 2') == ["model_settings"]
    assert marked(schema, 'model = "two/net"\nmodel_settings.depth = 2') == []
    assert marked(schema, 'model = "net"') == ["model"]  # whose?


def test_what_a_recipe_gives_need_not_stand_in_the_file(installed):
    hooks = """
        from plugin_trainer import DataSpec
        PTRAIN_API = 1
        def ptrain_data():
            return [DataSpec(name="rows", target="x:X", settings="{package}.settings:Rows")]
    """
    settings = "from dataclasses import dataclass\n@dataclass\nclass Rows:\n    train: str\n"
    installed.install("one", hooks=hooks, files={"settings.py": settings})
    assert marked(schema_with("one"), "[data_settings]") == []
