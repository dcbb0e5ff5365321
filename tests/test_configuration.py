"""What was typed becomes one checked configuration, or one list of everything that is wrong."""

from __future__ import annotations

import textwrap
import tomllib
from pathlib import Path

import pytest

from plugin_trainer.configuration import callbacks, configure
from plugin_trainer.errors import PluginBroken, SettingsError
from plugin_trainer.settings.layers import Layer, from_assignments, read_toml
from plugin_trainer.settings.render import to_toml

PLUGIN = '''
    """A plugin of everything, which is never built."""
    from dataclasses import dataclass
    from typing import Annotated

    from pydantic import Field

    from plugin_trainer import CallbackSpec, DataSpec, ModelSpec, RecipeSpec

    PTRAIN_API = 1


    @dataclass(frozen=True, kw_only=True)
    class NetSettings:
        width: Annotated[int, Field(ge=1)] = 8
        encoder: str = "none"


    @dataclass(frozen=True, kw_only=True)
    class OtherSettings:
        depth: int = 2


    @dataclass(frozen=True, kw_only=True)
    class DataSettings:
        train: str
        tokenizer: str = ""


    @dataclass(frozen=True, kw_only=True)
    class CountSettings:
        every: int = 1


    HERE = __name__


    def ptrain_models():
        return [
            ModelSpec(name="net", target="x:X", settings=f"{HERE}:NetSettings", default=True),
            ModelSpec(name="other", target="x:X", settings=f"{HERE}:OtherSettings"),
        ]


    def ptrain_data():
        return [
            DataSpec(
                name="rows",
                target="x:X",
                settings=f"{HERE}:DataSettings",
                default=True,
                defaults_from={"tokenizer": "model_settings.encoder"},
            )
        ]


    def ptrain_callbacks():
        return [
            CallbackSpec(name="count", target="x:X", settings=f"{HERE}:CountSettings"),
            CallbackSpec(name="free", target="x:X"),
        ]


    def ptrain_recipes():
        return [RecipeSpec(name="small", file="recipe.toml", default=True)]
'''

RECIPE = """
    model  = "all/net"
    data   = "all/rows"
    length = "2 epochs"
    seed   = 1

    [model_settings]
    width = 4

    [data_settings]
    train = "recipe.tsv"

    [ema]
    decay = 0.9
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a plugin at ./all.py, which ships a recipe."""
    monkeypatch.chdir(tmp_path)
    write("all.py", PLUGIN)
    write("recipe.toml", RECIPE)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(textwrap.dedent(text))
    return path


def configured(run_file="", *assignments, plugins=("./all.py",), **options):
    layer = read_toml(write("run.toml", run_file)) if run_file else None
    overrides = from_assignments(assignments) if assignments else None
    return configure(layer, plugins=plugins, overrides=overrides, **options)


def mistakes(*args, **options) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        configured(*args, **options)
    return [str(problem) for problem in caught.value.problems]


# -------------------------------------------------------------------------------------- precedence


def test_a_plugin_alone_runs_its_recipe(here):
    configuration = configured()
    assert configuration.settings.model == "all/net"
    assert configuration.settings.seed == 1
    assert configuration.model.settings.width == 4
    assert configuration.origins[("seed",)] == "all's recipe:5"
    assert configuration.origins[("plugins",)] == "--plugin"


def test_the_run_file_goes_over_the_recipe_and_set_over_both(here):
    configuration = configured(
        """
        seed = 2
        length = "3 epochs"
        """,
        "length=4 epochs",
    )
    assert configuration.settings.seed == 2
    assert str(configuration.settings.length) == "4 epochs"
    assert configuration.model.settings.width == 4
    assert configuration.origins[("seed",)] == "run.toml:2"
    assert configuration.origins[("length",)] == "--set"
    assert configuration.origins[("model_settings", "width")] == "all's recipe:8"


def test_ema_is_switched_off_over_a_recipe_that_has_it(here):
    assert configured().settings.ema.decay == 0.9
    assert configured("", "ema=false").settings.ema is None


def test_a_run_that_chooses_its_own_parts_takes_nothing_of_the_recipe(here):
    configuration = configured("", "model=all/other", "data_settings.train=x.tsv")
    assert configuration.settings.seed == 0
    assert configuration.model.values() == {"depth": 2}


def test_settings_of_another_model_do_not_come_along(here):
    configuration = configured(
        """
        model = "all/net"
        [model_settings]
        width = 3
        [data_settings]
        train = "x.tsv"
        """,
        "model=all/other",
    )
    assert configuration.model.values() == {"depth": 2}


def test_the_plugin_of_an_address_need_not_be_listed(here):
    layer = read_toml(
        write("run.toml", 'plugins = ["./all.py"]\ndata_settings.train = "x"\nmodel = "all/net"')
    )
    assert configure(layer).settings.model == "all/net"


def test_a_data_key_takes_its_default_from_where_the_plugin_says(here):
    configuration = configured("", "model_settings.encoder=bert")
    assert configuration.data.settings.tokenizer == "bert"
    assert configuration.origins[("data_settings", "tokenizer")] == "from model_settings.encoder"
    assert configured("", "data_settings.tokenizer=own").data.settings.tokenizer == "own"


def test_what_is_written_down_configures_the_same_run(here):
    first = configured(
        "", "callbacks=['all/count', 'free']", "callback_settings.free.x=[1, 2]", "log=never"
    )
    write("again.toml", to_toml(first.values()))
    again = configure(read_toml(Path("again.toml")))
    assert again.settings == first.settings
    assert again.values() == first.values() == tomllib.loads(Path("again.toml").read_text())


def test_a_run_written_down_with_tensorboard_is_read_where_there_is_none(here, monkeypatch):
    write("moved.toml", to_toml(configured().values()))
    found = callbacks.find_spec
    monkeypatch.setattr(
        callbacks, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    configuration = configure(read_toml(Path("moved.toml")))
    assert "core/tensorboard" not in addresses(configuration)


def test_a_library_run_needs_no_model_and_no_data():
    configuration = configure(parts=False)
    assert configuration.model is None and configuration.data is None


# ----------------------------------------------------------------------------- schedules of torch


def test_a_schedule_written_like_a_class_is_one_of_torchs(here):
    configuration = configured("", "schedule.name=OneCycleLR", "schedule_settings.max_lr=0.1")
    assert configuration.schedule.address == "torch.optim.lr_scheduler:OneCycleLR"
    assert configuration.settings.schedule.name == "torch.optim.lr_scheduler:OneCycleLR"
    assert configuration.schedule.values() == {"max_lr": 0.1}
    write("again.toml", to_toml(configuration.values()))
    assert configure(read_toml(Path("again.toml"))).values() == configuration.values()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("OneCycelLR", "did you mean 'OneCycleLR'?"), ("Linear", "did you mean 'LinearLR'?"),
     ("Cosine", "did you mean 'cosine'?"), ("LRScheduler", "torch.optim.lr_scheduler has no"),
     ("Optimizer", "torch.optim.lr_scheduler has no 'Optimizer'")],
)  # fmt: skip
def test_a_schedule_that_torch_does_not_have_is_named_with_the_nearest(here, name, suggestion):
    (found,) = mistakes("", f"schedule.name={name}")
    assert found.startswith(f"--set: schedule.name: torch.optim.lr_scheduler has no '{name}'")
    assert suggestion in found and "core/linear" in found and "StepLR" in found


# --------------------------------------------------------------------------------------- callbacks


def addresses(configuration) -> list[str]:
    return [choice.address for choice in configuration.callbacks]


def test_callbacks_add_to_the_defaults_before_those_that_show_what_was_logged(here):
    assert addresses(configured("", "callbacks=['free', 'all/count']")) == [
        *("core/learning_rate_monitor", "all/free", "all/count"),
        *("core/progress_bar", "core/tensorboard"),
    ]


def test_a_minus_takes_a_callback_away(here):
    assert addresses(configured("", "callbacks=['-progress_bar', '-tensorboard']")) == [
        "core/learning_rate_monitor"
    ]


def test_a_default_callback_whose_packages_are_missing_may_still_be_taken_away(here, monkeypatch):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    assert "core/tensorboard" not in addresses(configured("", "callbacks=['-tensorboard']"))


def test_taking_away_what_is_not_there_is_a_mistake(here):
    assert mistakes("", "callbacks=['-early_stopping']") == [
        "--set: callbacks: '-early_stopping' takes away a callback that is not part of the run"
    ]


def test_settings_for_a_callback_that_is_not_listed_are_a_mistake(here):
    assert mistakes("", "callback_settings.early_stopping.patience=3") == [
        "--set: callback_settings.early_stopping: this run has no callback 'early_stopping': "
        "add it to callbacks, or remove the table"
    ]


def test_what_is_wrong_in_the_table_of_a_callback_that_is_not_listed_is_told_too(here):
    found = mistakes("", "callback_settings.early_stopping.patience=0")
    assert [line.split(": ")[1] for line in found] == [
        "callback_settings.early_stopping",
        "callback_settings.early_stopping.patience",
    ]


def test_settings_of_a_callback_are_found_under_its_short_and_its_full_name(here):
    for name in ("count", '"all/count"'):
        configuration = configured(
            "", "callbacks=['all/count']", f"callback_settings.{name}.every=5"
        )
        (count,) = [choice for choice in configuration.callbacks if choice.address == "all/count"]
        assert count.settings.every == 5
        assert configuration.origins[("callback_settings", "all/count", "every")] == "--set"


STOPPING = """
    callbacks = ["early_stopping", "count"]
    [callback_settings.early_stopping]
    patience = 3
    [callback_settings.tensorboard]
    folder = "board"
"""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("['-early_stopping']", {"all/count"}),
        ("['+free']", {"core/early_stopping", "all/count", "all/free"}),
        ("['-core/early_stopping', '+free', '-count']", {"all/free"}),
        ("['-tensorboard']", {"core/early_stopping", "all/count"}),
        ("['free']", {"all/free"}),
        ("['free', '-tensorboard']", {"all/free"}),
        ("[]", set()),
    ],
)
@pytest.mark.parametrize("below", ["recipe.toml", "run.toml"])
def test_callbacks_below_are_changed_by_signed_names_and_replaced_by_others(
    here, below, typed, expected
):
    text = textwrap.dedent(STOPPING)
    if below == "recipe.toml":
        path = Path("recipe.toml")
        path.write_text(text.replace("[callback", f"{path.read_text()}\n[callback", 1))
        found = configured("", f"callbacks={typed}")
    else:
        found = configured(text, f"callbacks={typed}")
    defaults = set(addresses(configured("", "callbacks=[]")))
    if "-tensorboard" in typed:
        defaults.remove("core/tensorboard")
    assert set(addresses(found)) == expected | defaults
    # What is written down can be read again, and says the same.
    again = configure(read_toml(write("again.toml", to_toml(found.values()))))
    assert addresses(again) == addresses(found)
    assert again.values() == found.values()


def test_settings_given_with_a_callback_taken_away_are_a_mistake(here):
    found = mistakes(
        STOPPING, "callbacks=['-early_stopping']", "callback_settings.early_stopping.patience=9"
    )
    assert [line.partition(": this run")[0] for line in found] == [
        "--set: callback_settings.early_stopping"
    ]


def test_a_callback_named_twice_is_called_once(here):
    assert addresses(configured("", "callbacks=['free', 'all/free']")).count("all/free") == 1


# ---------------------------------------------------------------------------------------- mistakes


def test_every_mistake_is_reported_at_once_those_of_plugins_too(here):
    found = mistakes(
        """
        lenght = "3 epochs"
        evaluate = 500
        callbacks = ["early_stoping", "early_stopping"]

        [model_settings]
        width = 0
        widht = 3

        [data_settings]
        trian = "x"

        [optimizer]
        learning_rate = "fast"

        [callback_settings.early_stopping]
        patience = 0
        mode = "lowest"

        [schedule]
        name = "linaer"
        """,
        "seed=x",
        "model=all/net",
    )
    assert len(found) == 12
    expected = [
        "run.toml:2: lenght: no such key; did you mean 'length'?",
        'run.toml:3: evaluate: 500 has no unit: write "500 steps" or "1 epoch"',
        "run.toml:7: model_settings.width: 0 is too small: it must be 1 or more",
        "run.toml:8: model_settings.widht: no such key; did you mean 'width'?",
        "run.toml:11: data_settings.trian: no such key; did you mean 'train'?",
        "run.toml:11: data_settings.train: is required",
        "run.toml:14: optimizer.learning_rate: 'fast' is not a number",
        "run.toml:17: callback_settings.early_stopping.patience: 0 is too small: ",
        "run.toml:18: callback_settings.early_stopping.mode: 'lowest' is not one of min, max",
        "--set: seed: 'x' is not a whole number",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), start
    (callbacks,) = [line for line in found if line.startswith("run.toml:4: callbacks: ")]
    assert "early_stopping" in callbacks
    (schedule,) = [line for line in found if line.startswith("run.toml:21: schedule.name: ")]
    assert "did you mean 'core/linear'" in schedule


def test_mistakes_come_in_the_order_of_the_lines_and_then_of_set(here):
    found = mistakes(
        """
        [callback_settings.early_stopping]
        patience = 0
        [model_settings]
        widht = 3
        [schedule]
        name = "linaer"
        [optimizer.groups."head.*"]
        learning_rat = 1
        [data_settings]
        trian = "x"
        """,
        "callbacks=['early_stopping']",
        "zeed=1",
    )
    assert [line.split(": ")[0] for line in found] == [
        *("run.toml:3", "run.toml:5", "run.toml:7", "run.toml:9"),
        *("run.toml:11", "--set"),
    ]
    assert found[3].startswith('run.toml:9: optimizer.groups."head.*".learning_rat: no such key; ')


def test_a_number_typed_for_a_text_is_that_text(here):
    configuration = configured("", "name=007", "model_settings.encoder=3", "best.watch=1e3")
    assert configuration.settings.name == "007"
    assert configuration.model.settings.encoder == "3"
    assert configuration.settings.best.watch == "1e3"
    found = mistakes('plugins = ["./all.py"]\nname = 7', plugins=())
    assert found == ["run.toml:2: name: 7 is not text: write it in quotes"]


def test_a_plugin_that_cannot_be_used_hides_no_other_mistake(here):
    write("broken.py", "raise RuntimeError('at once')")
    found = mistakes(
        """
        plugins = ["./all.py", "./broken.py", "dactbret"]
        model = "all/nett"
        callbacks = ["early_stoping", "broken/counter", "all/count", "all/cuont"]
        [data_settings]
        trian = "x"
        [callback_settings.tally]
        x = 1
        [optimizer]
        lr = 1
        """,
        plugins=("./gone.py",),
    )
    keys = [": ".join(line.split(": ")[:2]) for line in found]
    assert keys == [
        *("run.toml:2: plugins", "run.toml:2: plugins", "run.toml:3: model"),
        *("run.toml:4: callbacks", "run.toml:4: callbacks"),
        *("run.toml:6: data_settings.trian", "run.toml:6: data_settings.train"),
        *("run.toml:10: optimizer.lr", "--plugin: no plugin at './gone.py'"),
    ]


def test_an_unknown_model_is_named_with_the_nearest(here):
    (found,) = mistakes("", "model=all/nett", "data_settings.train=x")
    assert found.startswith("--set: model: ")
    assert "all/net" in found


def test_a_run_without_a_model_says_what_it_needs():
    assert [line.partition(": ")[2] for line in mistakes("", "seed=1", plugins=())] == [
        "model: is required: name one, or a plugin that has one with --plugin NAME",
        "data: is required: name one, or a plugin that has one with --plugin NAME",
    ]


@pytest.mark.parametrize("plugins", ["plugins=['./all.py', 3]", "plugins='./all.py'", "plugins=3"])
def test_a_list_of_plugins_that_is_none_is_reported(here, plugins):
    found = mistakes("", plugins)
    assert any(line.startswith("--set: plugins") for line in found), found


@pytest.mark.parametrize(
    "assignment",
    ["model_settings=3", "model=[3]", "schedule.name=[3]", "schedule=3", "callbacks=3", "ema=3"],
)
def test_a_value_of_the_wrong_shape_is_a_mistake_and_not_a_crash(here, assignment):
    found = mistakes("", "data_settings.train=x", assignment)
    key, _, value = assignment.partition("=")
    assert any(line.startswith(f"--set: {key}: {value} is not ") for line in found), found


@pytest.mark.parametrize("assignment", ["callback_settings=3", "data_settings=3"])
def test_a_table_that_is_none_is_a_mistake_and_not_a_crash(here, assignment):
    found = mistakes("", assignment)
    assert any(line.startswith(f"--set: {assignment.partition('=')[0]}: ") for line in found), found


def test_a_recipe_that_is_not_there_is_the_plugins_mistake(here):
    Path("recipe.toml").unlink()
    with pytest.raises(PluginBroken, match=r"plugin 'all' offers the recipe 'small', but not"):
        configured()


def test_two_spellings_of_a_callback_are_one_table():
    given = {
        "length": "1 steps",
        "callbacks": ["early_stopping"],
        "callback_settings": {
            "core/early_stopping": {"watch": "val/accuracy", "mode": "max", "patience": 3},
            "early_stopping": {"patience": 30},
        },
    }
    made = configure(Layer("run.toml", given), parts=False)
    (stopping,) = [c.settings for c in made.callbacks if c.address == "core/early_stopping"]
    assert (stopping.watch, stopping.mode, stopping.patience) == ("val/accuracy", "max", 30)
