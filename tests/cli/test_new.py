"""`ptrain plugins new` writes a plugin that loads, trains and passes its own tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugin_trainer.cli.new import write_plugin
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.building import settings_class
from plugin_trainer.registry.catalog import open_catalog
from plugin_trainer.registry.loading import path_of
from plugin_trainer.settings.describe import describe

FILES = """
    README.md
    pyproject.toml
    ptrain_my_rings/__init__.py
    ptrain_my_rings/callback.py
    ptrain_my_rings/data.py
    ptrain_my_rings/hooks.py
    ptrain_my_rings/model.py
    ptrain_my_rings/recipe.toml
    ptrain_my_rings/schedule.py
    ptrain_my_rings/settings.py
    tests/test_plugin.py
"""


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_it_writes_the_whole_plugin_beside(installed, ptrain):
    typed = ptrain("plugins", "new", "my_rings")
    assert typed.code == 0
    folder = installed.cwd / "ptrain-my-rings"
    assert files_in(folder) == sorted(FILES.split())
    assert not [file for file in folder.rglob("*.*") if "$" in file.read_text()]
    assert "ptrain run --plugin ./ptrain-my-rings" in typed.out


@pytest.mark.process
def test_what_it_writes_is_clean_and_loads(installed, ptrain):
    folder = write_plugin("my_rings", to=installed.cwd / "here")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    rules = "E,F,I,UP,B,SIM,C4,RUF"
    for args in (["check", "--no-cache", "--select", rules], ["format", "--no-cache", "--check"]):
        done = subprocess.run([ruff, *args, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    catalog = open_catalog(["./here"])
    assert {catalog.default(kind).address for kind in ("model", "data", "scheduler")} == {
        "my_rings/mlp",
        "my_rings/rings",
        "my_rings/half_cosine",
    }
    recipe = catalog.default("recipe")
    assert path_of(recipe.plugin, recipe.spec) == folder / "ptrain_my_rings" / "recipe.toml"


@pytest.mark.process
def test_what_it_writes_passes_the_check_and_its_own_tests(installed):
    write_plugin("my_rings", to=installed.cwd / "here")
    checked = installed.run("-m", "plugin_trainer", "plugins", "check", "./here")
    assert checked.stdout == "./here: ok\n"
    tested = installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "here", cold=False)
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout


def test_what_it_writes_explains_all_its_settings(installed):
    write_plugin("my_rings", to=installed.cwd / "here")
    catalog = open_catalog(["./here"])
    for kind in ("model", "data", "callback", "scheduler"):
        cls = settings_class(catalog.default(kind))
        assert [key.key for key in describe(cls) if not key.meaning] == []


def test_text_that_is_no_point_is_told_and_no_internal_error(installed, ptrain):
    write_plugin("my_rings", to=installed.cwd / "here")
    run = ("run", "--plugin", "./here", "--set", "length=2 steps", "--out", "made")
    assert ptrain(*run).code == 0
    for text in ("left right", "1 2 3"):
        installed.write("points.txt", f"0.5 -1.2\n{text}\n")
        typed = ptrain("predict", "made", "points.txt")
        assert typed.code == 2
        assert f"'{text}' is not a point" in typed.err and "internal error" not in typed.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My-Rings", "'my_rings' would do"),
        ("ptrain-rings", "'rings' would do"),
        ("2d", "a name is a lower-case letter"),
        ("", "a name is a lower-case letter"),
        ("../up", "'up' would do"),
    ],
)
def test_a_name_that_no_plugin_may_have_is_refused(installed, name, hint):
    with pytest.raises(PtrainError) as caught:
        write_plugin(name)
    assert caught.value.message == f"'{name}' cannot be the name of a plugin"
    assert any(line.startswith(hint) for line in caught.value.hint)
    assert files_in(installed.cwd) == []


@pytest.mark.parametrize("name", ["run", "plugins", "core"])
def test_a_command_of_ours_is_no_name_for_a_plugin(installed, name):
    with pytest.raises(PtrainError, match="ptrain itself uses it"):
        write_plugin(name)


def test_nothing_is_overwritten(installed, ptrain):
    file = installed.write("here/notes.txt", "mine")
    typed = ptrain("plugins", "new", "rings", "--to", "here")
    assert typed.code == 2
    assert typed.err.startswith("error: here is not empty")
    assert files_in(file.parent) == ["notes.txt"]


def test_an_empty_folder_may_be_filled(installed, ptrain):
    (installed.cwd / "here").mkdir()
    assert ptrain("plugins", "new", "rings", "--to", "here").code == 0
