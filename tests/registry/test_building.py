"""A target is imported when it is built, and called as its kind's contract says."""

from types import SimpleNamespace

import pytest

from plugin_trainer.errors import DataError, PluginBroken, SettingsError
from plugin_trainer.registry.building import build, import_target, settings_class
from plugin_trainer.registry.catalog import Catalog, open_catalog

PARTS = """
    from __future__ import annotations

    import dataclasses
    from typing import TYPE_CHECKING, Any

    from plugin_trainer.errors import DataError

    if TYPE_CHECKING:
        from nowhere import Run

    @dataclasses.dataclass
    class Settings:
        width: int = 3

    class Recorder:
        def __init__(self, *args):
            self.args = args

    def annotated(settings: Settings, data: Run):
        return settings, data

    def mapped(settings: dict[str, Any], data):
        return settings, data

    def keywords(width, *, depth=2, data=None):
        return width, depth, data

    def scheduler(optimizer, gamma, total_steps=0):
        return optimizer, gamma, total_steps

    def fails(**settings):
        raise RuntimeError("too wide\\nby far")

    def refuses():
        raise DataError("no such file")

    not_a_class = 3
"""

HOOKS = """
    from plugin_trainer.specs import *

    PTRAIN_API = 1
    S = "{package}.parts:Settings"

    def ptrain_models():
        return [ModelSpec(name="settled", target="{package}.parts:Recorder", settings=S),
                ModelSpec(name="plain", target="{package}.parts:keywords"),
                ModelSpec(name="wrong", target="{package}.parts:keywords",
                          settings="{package}.parts:not_a_class"),
                ModelSpec(name="gone", target="{package}.parts:Recordr")]

    def ptrain_data():
        return [DataSpec(name="settled", target="{package}.parts:Recorder", settings=S)]

    def ptrain_callbacks():
        return [CallbackSpec(name="settled", target="{package}.parts:Recorder", settings=S)]

    def ptrain_schedulers():
        return [SchedulerSpec(name="settled", target="{package}.parts:Recorder", settings=S)]
"""


@pytest.fixture
def catalog(installed) -> Catalog:
    installed.install("toy", hooks=HOOKS, files={"parts.py": PARTS})
    return open_catalog(["toy"])


@pytest.mark.parametrize(
    ("kind", "context", "called_with"),
    [
        ("model", {"data": "D"}, ("S", "D")),
        ("data", {}, ("S",)),
        ("callback", {}, ("S",)),
        ("scheduler", {"total_steps": 9, "optimizer": "O"}, ("O", "S", 9)),
    ],
)
def test_each_kind_is_called_as_its_contract_says(catalog, kind, context, called_with):
    built = build(catalog.find(kind, "toy/settled"), "S", **context)
    assert built.args == called_with


def test_the_settings_class_is_the_one_that_the_spec_names(catalog):
    assert settings_class(catalog.find("model", "settled")).__name__ == "Settings"
    assert settings_class(catalog.find("model", "plain")) is None


def test_settings_that_are_no_dataclass_are_the_plugins_mistake(catalog):
    with pytest.raises(PluginBroken, match="but that is not a dataclass"):
        settings_class(catalog.find("model", "wrong"))


def test_a_class_by_its_path_may_annotate_its_settings(catalog):
    offer = catalog.find("model", "ptrain_toy.parts:annotated")
    assert settings_class(offer).__name__ == "Settings"
    assert build(offer, "S", data="D") == ("S", "D")


def test_a_class_by_its_path_may_take_its_settings_as_one_mapping(catalog):
    offer = catalog.find("model", "ptrain_toy.parts:mapped")
    assert settings_class(offer) is None
    assert build(offer, {"a": 1}, data="D") == ({"a": 1}, "D")


def test_without_a_settings_class_settings_are_keyword_arguments(catalog):
    assert build(catalog.find("model", "plain"), {"width": 5}, data="D") == (5, 2, "D")
    offer = catalog.find("scheduler", "ptrain_toy.parts:scheduler")
    assert build(offer, {"gamma": 0.5}, optimizer="O", total_steps=7) == ("O", 0.5, 7)


def test_every_keyword_mistake_is_named_with_its_key_and_what_is_accepted(catalog):
    with pytest.raises(SettingsError) as caught:
        build(catalog.find("model", "plain"), {"widht": 5, "colour": 1}, data=None)
    assert [str(problem) for problem in caught.value.problems] == [
        "model 'toy/plain': model_settings.widht: it takes no 'widht'; did you mean 'width'? "
        "(it takes: width, depth)",
        "model 'toy/plain': model_settings.colour: it takes no 'colour' (it takes: width, depth)",
        "model 'toy/plain': model_settings.width: it is required",
    ]


def test_torch_classes_work_as_they_are(catalog):
    import torch

    model = build(
        catalog.find("model", "torch.nn:Linear"), {"in_features": 4, "out_features": 2}, data=None
    )
    assert isinstance(model, torch.nn.Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = build(
        catalog.find("scheduler", "torch.optim.lr_scheduler:StepLR"),
        {"step_size": 3},
        optimizer=optimizer,
        total_steps=9,
    )
    assert schedule.step_size == 3
    one_cycle = catalog.find("scheduler", "torch.optim.lr_scheduler:OneCycleLR")
    assert build(one_cycle, {"max_lr": 1.0}, optimizer=optimizer, total_steps=9).total_steps == 9


def test_an_error_while_building_names_the_part_and_the_line(catalog):
    with pytest.raises(PluginBroken) as caught:
        build(catalog.find("data", "ptrain_toy.parts:fails"), {"width": 1})
    line = PARTS.split("too wide")[0].count("\n")
    assert str(caught.value).splitlines() == [
        "data module 'ptrain_toy.parts:fails' could not be built",
        "  RuntimeError: too wide",
        f"  raised at ptrain_toy/parts.py:{line}",
        "  see everything with --debug",
    ]


def test_an_error_that_a_user_can_act_on_passes_unchanged(catalog):
    with pytest.raises(DataError, match="no such file"):
        build(catalog.find("data", "ptrain_toy.parts:refuses"), {})


def test_a_target_that_is_gone_names_the_plugin_and_the_nearest(catalog):
    with pytest.raises(PluginBroken) as caught:
        build(catalog.find("model", "gone"), {}, data=None)
    assert str(caught.value).splitlines() == [
        "plugin 'toy' names ptrain_toy.parts:Recordr: ptrain_toy.parts has no 'Recordr'",
        "  did you mean 'Recorder'?",
    ]


def test_a_target_whose_module_fails_names_the_cause_and_the_line(installed):
    installed.install("toy", files={"model.py": '"""Model."""\nimport not_here_at_all\n'})
    with pytest.raises(PluginBroken) as caught:
        build(open_catalog(["toy"]).find("model", "base"), {}, data=SimpleNamespace())
    assert str(caught.value).splitlines()[:3] == [
        "ptrain_toy.model:Model of plugin 'toy' could not be imported",
        "  ModuleNotFoundError: No module named 'not_here_at_all'",
        "  raised at ptrain_toy/model.py:2",
    ]


def test_a_module_that_is_nowhere_says_so():
    with pytest.raises(PluginBroken) as caught:
        import_target("not_here_at_all:Model")
    assert caught.value.message == "not_here_at_all:Model could not be imported"
