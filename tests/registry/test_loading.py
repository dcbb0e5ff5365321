"""A plugin is loaded from where it was pointed at; its offers are checked before they count."""

import os
import sys

import pytest

from plugin_trainer.errors import PluginBroken
from plugin_trainer.registry.loading import load, path_of
from plugin_trainer.registry.resolution import resolve

TOY = """
    from plugin_trainer.specs import ModelSpec

    PTRAIN_API = 1

    def ptrain_models():
        yield ModelSpec(name="{model}", target=f"{__name__}:Toy")

    class Toy:
        pass
"""


def project(installed, folder, *, model="base", source=""):
    installed.write(
        f"{folder}/pyproject.toml",
        """
        [project]
        name = "ptrain-vision"
        [project.entry-points."plugin_trainer.plugins"]
        vision = "ptrain_vision.hooks"
        """,
    )
    installed.write(f"{folder}/{source}ptrain_vision/__init__.py", "")
    installed.write(f"{folder}/{source}ptrain_vision/hooks.py", TOY.replace("{model}", model))


@pytest.mark.parametrize("source", ["", "src/"])
def test_a_folder_is_put_on_the_path_only_when_it_is_loaded(installed, source):
    project(installed, "vision", source=source)
    resolved = resolve("./vision")
    assert not any(str(installed.cwd / "vision") in entry for entry in sys.path)
    assert [spec.name for spec in load(resolved).models] == ["base"]


def test_a_folder_wins_over_an_installed_plugin_of_its_name(installed):
    installed.install("vision")
    project(installed, "vision", model="local")
    assert [spec.name for spec in load(resolve("./vision")).models] == ["local"]


def test_a_folder_whose_module_was_already_imported_from_elsewhere_is_refused(installed):
    installed.install("vision")
    load(resolve("vision"))
    project(installed, "vision", model="local")
    with pytest.raises(PluginBroken) as caught:
        load(resolve("./vision"))
    assert "but its module came from elsewhere" in caught.value.message
    assert "site-packages/ptrain_vision/hooks.py" in caught.value.hint[0]


def test_one_file_is_a_whole_plugin(installed):
    installed.write("toy.py", TOY.replace("{model}", "mlp"))
    before = sys.modules.get("toy")
    plugin = load(resolve("toy.py"))
    assert plugin.name == "toy"
    assert plugin.models[0].target == "ptrain_local_toy:Toy"
    assert sys.modules.get("toy") is before


def test_a_file_that_was_just_edited_is_loaded_as_it_is_now(installed, monkeypatch):
    """Python takes old bytecode for a file that has the same size and second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = installed.cwd / "toy.py"
    for model in ("first", "other"):
        installed.write("toy.py", TOY.replace("{model}", model))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert [spec.name for spec in load(resolve("./toy.py")).models] == [model]
        del sys.modules["ptrain_local_toy"]


def test_a_file_that_fails_leaves_no_module_behind(installed):
    installed.write("toy.py", "import dataclasses\n1 / 0\n")
    with pytest.raises(PluginBroken) as caught:
        load(resolve("toy.py"))
    assert caught.value.hint[:2] == ("ZeroDivisionError: division by zero", "raised at toy.py:2")
    assert "ptrain_local_toy" not in sys.modules


def test_a_module_and_an_object_in_one_are_plugins_too(installed):
    installed.write(installed.folder / "my_lab/__init__.py", "")
    installed.write(installed.folder / "my_lab/hooks.py", TOY.replace("{model}", "a"))
    installed.write(
        installed.folder / "my_lab/objects.py",
        """
        from plugin_trainer.specs import ModelSpec

        class Plugin:
            PTRAIN_API = 1

            def ptrain_models(self):
                return [ModelSpec(name="b", target="my_lab.objects:Plugin")]

        plugin = Plugin()
        """,
    )
    for typed, model in (
        ("my_lab.hooks", "a"),
        ("my_lab.objects:plugin", "b"),
        ("my_lab.objects:Plugin", "b"),
    ):
        plugin = load(resolve(typed))
        assert [spec.name for spec in plugin.models] == [model]
        assert plugin.source.path.startswith(str(installed.folder / "my_lab"))


def test_a_recipe_lies_beside_the_hook_module(installed):
    installed.install(
        "vision",
        hooks="""
        from plugin_trainer.specs import RecipeSpec
        PTRAIN_API = 1
        def ptrain_recipes():
            return [RecipeSpec(name="small", file="recipes/small.toml")]
        """,
    )
    plugin = load(resolve("vision"))
    expected = installed.folder / "ptrain_vision" / "recipes" / "small.toml"
    assert path_of(plugin, plugin.recipes[0]) == expected


MODEL = 'ModelSpec(name="a", target="pkg.mod:A"{more})'


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "ptrain_models returned nothing, not a list of ModelSpec"),
        (MODEL, "ptrain_models returned a ModelSpec, not a list of ModelSpec"),
        ("'base'", "ptrain_models returned a str, not a list of ModelSpec"),
        ("3", "ptrain_models failed"),
        ("1 / 0", "ptrain_models failed"),
        ("['base']", "ptrain_models returned a list with a str in it"),
        ("[DataSpec(name='a', target='a:b')]", "returned a list with a DataSpec in it"),
        ("[ModelSpec(name='Big', target='a:b')]", "ptrain_models offers the name 'Big'"),
        ("[ModelSpec(name=3, target='a:b')]", "ptrain_models offers the name 3"),
        (f"[{MODEL}, {MODEL}]", "ptrain_models offers 'a' twice"),
        ("[ModelSpec(name='a', target='a.b.C')]", "offers 'a' with target 'a.b.C'"),
        ("[ModelSpec(name='a', target=dict)]", "offers 'a' with target <class 'dict'>"),
        ("[ModelSpec(name='a', target='a:b', settings='c')]", "with settings 'c'"),
        (
            "[ModelSpec(name=n, target='a:b', default=True) for n in 'xy']",
            "ptrain_models has 2 defaults: x, y",
        ),
    ],
)
def test_what_a_hook_returns_must_be_usable(installed, returned, message):
    installed.install(
        "vision",
        hooks=f"""
        from plugin_trainer.specs import DataSpec, ModelSpec
        PTRAIN_API = 1
        def ptrain_models():
            return {returned.replace("{more}", "")}
        """,
    )
    with pytest.raises(PluginBroken) as caught:
        load(resolve("vision"))
    assert caught.value.message.startswith("plugin 'vision': ")
    assert message in caught.value.message


@pytest.mark.parametrize("file", ["", "/etc/recipe.toml", "../recipe.toml"])
def test_a_recipe_stays_inside_its_package(installed, file):
    installed.install(
        "vision",
        hooks=f"""
        from plugin_trainer.specs import RecipeSpec
        PTRAIN_API = 1
        def ptrain_recipes():
            return [RecipeSpec(name="small", file="{file}")]
        """,
    )
    with pytest.raises(PluginBroken, match="ptrain_recipes offers 'small' with file"):
        load(resolve("vision"))


def test_a_plugin_may_have_several_default_callbacks(installed):
    installed.install(
        "vision",
        hooks="""
        from plugin_trainer.specs import CallbackSpec
        PTRAIN_API = 1
        def ptrain_callbacks():
            return [CallbackSpec(name=n, target="a:b", default=True) for n in "xy"]
        """,
    )
    assert len(load(resolve("vision")).callbacks) == 2
