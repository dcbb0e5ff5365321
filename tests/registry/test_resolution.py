"""The spelling decides what is meant, not what happens to lie on the disk."""

import sys

import pytest

from plugin_trainer.errors import PluginBroken, PluginDuplicate, PluginNotFound
from plugin_trainer.registry.resolution import resolve

PROJECT = """
    [project]
    name = "ptrain-vision"
    version = "1.5"

    [project.entry-points."plugin_trainer.plugins"]
    vision = "ptrain_vision.hooks"
"""


def test_a_plain_name_is_an_installed_plugin(installed):
    installed.install("dactbert", version="0.3.0")
    source = resolve("dactbert")
    assert (source.origin, source.name, source.target) == (
        "installed",
        "dactbert",
        "ptrain_dactbert.hooks",
    )
    assert str(source) == "'dactbert' (ptrain-dactbert 0.3.0)"


@pytest.mark.parametrize("typed", ["./plugins/vision", "plugins/vision", "plugins/vision/"])
def test_a_slash_means_a_folder(installed, typed):
    root = installed.write("plugins/vision/pyproject.toml", PROJECT).parent
    source = resolve(typed)
    assert (source.origin, source.name, source.target) == ("path", "vision", "ptrain_vision.hooks")
    assert (source.distribution, source.version) == ("ptrain-vision", "1.5")
    assert source.path == str(root)


def test_a_dot_means_the_current_folder(installed):
    installed.write("pyproject.toml", PROJECT)
    assert resolve(".").name == "vision"


def test_relative_paths_are_relative_to_the_given_folder(installed):
    root = installed.write("project/plugins/vision/pyproject.toml", PROJECT).parent
    assert resolve("./plugins/vision", folder=installed.cwd / "project").path == str(root)


@pytest.mark.parametrize("typed", ["toy.py", "./toy.py"])
def test_py_means_one_file(installed, typed):
    file = installed.write("toy.py", "")
    source = resolve(typed)
    assert (source.origin, source.name, source.target) == ("path", "toy", "ptrain_local_toy")
    assert source.path == str(file)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("my_lab.hooks", "my_lab"),
        ("my_lab.plugin", "my_lab"),
        ("ptrain_toy.hooks", "toy"),
        ("my_lab.vision", "vision"),
        ("my_lab.hooks:Plugin", "my_lab"),
        ("my_lab:plugin", "my_lab"),
    ],
)
def test_a_dot_or_a_colon_means_a_module(installed, typed, name):
    source = resolve(typed)
    assert (source.origin, source.name, source.target) == ("module", name, typed)


def test_the_module_of_an_installed_plugin_keeps_its_name(installed):
    installed.install("vision", package="pixels")
    source = resolve("pixels.hooks")
    assert (source.origin, source.name, source.version) == ("module", "vision", "0.1.0")


def test_resolving_imports_nothing_and_leaves_the_path_alone(installed):
    installed.install("vision")
    installed.write("plugins/vision/pyproject.toml", PROJECT)
    installed.write("toy.py", "raise SystemExit")
    modules, path = set(sys.modules), list(sys.path)
    for typed in ("vision", "./plugins/vision", "toy.py", "some.module"):
        resolve(typed)
    assert set(sys.modules) == modules
    assert sys.path == path


def test_a_folder_of_that_name_is_pointed_out_and_not_used(installed):
    installed.install("dactbert")
    installed.install("good")
    installed.write("plugins/vision/pyproject.toml", PROJECT)
    with pytest.raises(PluginNotFound) as caught:
        resolve("vision")
    assert str(caught.value).splitlines() == [
        "no installed plugin is called 'vision'",
        "  there is a folder ./plugins/vision: to use it, write --plugin ./plugins/vision",
        "  installed here: dactbert, good",
        f"  this is {sys.executable}",
    ]


def test_a_file_beside_is_not_used_for_a_plain_name(installed):
    installed.write("toy.py", "")
    with pytest.raises(PluginNotFound):
        resolve("toy")


def test_an_installed_plugin_is_not_used_for_a_path(installed):
    installed.install("vision")
    with pytest.raises(PluginNotFound, match=r"no plugin at './vision': .*vision is not a folder"):
        resolve("./vision")


def test_a_plugin_that_the_allow_list_hides_is_not_found_and_says_so(installed, monkeypatch):
    installed.install("vision")
    monkeypatch.setenv("PTRAIN_PLUGINS", "")
    with pytest.raises(PluginNotFound) as caught:
        resolve("vision")
    assert "it is installed, but the environment variable PTRAIN_PLUGINS leaves it out" in (
        caught.value.hint
    )


def test_no_message_suggests_installing_what_was_typed(installed):
    for typed in ("vision", "./vision", "vision.py"):
        with pytest.raises(PluginNotFound) as caught:
            resolve(typed)
        assert "install " not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project]\nname = 'x'\n", "its pyproject.toml has no [project.entry-points"),
        (
            '[project.entry-points."plugin_trainer.plugins"]\na = "a.hooks"\nb = "b.hooks"\n',
            "holds several plugins (a, b)",
        ),
    ],
)
def test_a_folder_must_hold_one_plugin(installed, text, message):
    installed.write("here/pyproject.toml", text)
    with pytest.raises(PluginNotFound) as caught:
        resolve("./here")
    assert message in caught.value.message


def test_a_folder_without_a_project_says_how_to_start_one(installed):
    (installed.cwd / "empty").mkdir()
    with pytest.raises(PluginNotFound) as caught:
        resolve("./empty")
    assert caught.value.hint == ("make one with: ptrain plugins new NAME",)


def test_a_project_file_that_is_not_toml_names_the_line(installed):
    installed.write("here/pyproject.toml", "[project\n")
    with pytest.raises(PluginBroken, match="line 1"):
        resolve("./here")


def test_a_name_that_two_packages_claim_is_refused(installed):
    installed.install("vision")
    installed.install("vision", distribution="ptrain-dup", package="dup")
    with pytest.raises(PluginDuplicate):
        resolve("vision")
