"""`ptrain plugins` shows every installed plugin, the broken ones too, and hurts none."""

import json
import textwrap

import pytest

SOUND = """
    from plugin_trainer.specs import CallbackSpec, ModelSpec, RecipeSpec

    PTRAIN_API = 1

    def ptrain_models():
        return [ModelSpec(name="base", target="{package}.model:Model",
                          settings="{package}.model:Settings", summary="A model", default=True)]

    def ptrain_callbacks():
        return [CallbackSpec(name=name, target="{package}.model:Bell") for name in "ab"]

    def ptrain_recipes():
        return [RecipeSpec(name="small", file="small.toml")]
"""

MODEL = """
    from dataclasses import dataclass

    @dataclass
    class Settings:
        width: int = 3

    class Model: ...

    class Bell:
        def ptrain_step_end(self, outcome): ...
"""
ROWS = """
from plugin_trainer.specs import DataSpec
def ptrain_data():
    return [DataSpec(name="rows", target="{package}.model:Model")]
"""


def install_sound(installed, name="sound", **changes):
    files = {"model.py": MODEL, "small.toml": "length = '1 epoch'\n"}
    installed.install(name, hooks=SOUND, files=files, version="0.3.0", **changes)


def install_broken(installed):
    installed.install("absent", hooks="import a_package_that_is_not_there\n")
    installed.install("exits", hooks="raise SystemExit(1)\n")
    installed.install("future", hooks="PTRAIN_API = 9\ndef ptrain_models(): return []\n")
    installed.install("misspelt", hooks="PTRAIN_API = 1\ndef ptrain_run_start(rum): ...\n")
    installed.install("unknown", hooks="PTRAIN_API = 1\ndef ptrain_modles(): return []\n")
    installed.install("twice", package="once")
    installed.install("twice", package="again", distribution="ptrain-again")


def test_P04_P05_the_list_shows_what_is_sound_and_what_is_not(installed, ptrain):
    install_sound(installed)
    install_broken(installed)
    typed = ptrain("plugins")
    assert typed.code == 0
    assert all(len(line) <= 80 for line in typed.out.splitlines())
    rows = {line.split()[0]: line.split() for line in typed.out.splitlines() if line[0] != " "}
    assert rows["name"] == ["name", "version", "state", "import", "offers", "from"]
    assert rows["sound"][1:3] == ["0.3.0", "ok"]
    assert "1 model, 2" in typed.out
    assert rows["absent"][2] == "broken"
    assert "ModuleNotFoundError" in typed.out
    assert rows["exits"][2] == rows["misspelt"][2] == rows["unknown"][2] == "broken"
    assert rows["future"][2] == "incompatible"
    assert rows["twice"][2] == "duplicate"
    assert typed.out.splitlines()[-1] == "7 of 8 plugins cannot be used: ptrain plugins check"


def test_one_broken_plugin_is_named_in_the_last_line(installed, ptrain):
    install_sound(installed)
    installed.install("exits", hooks="raise SystemExit(1)\n")
    last = ptrain("plugins", "list").out.splitlines()[-1]
    assert last == "1 of 2 plugins cannot be used: ptrain plugins check exits"


def test_the_list_is_json_on_request(installed, ptrain):
    install_sound(installed)
    install_broken(installed)
    rows = json.loads(ptrain("plugins", "--json").out)
    assert rows == sorted(rows, key=lambda row: (row["name"], row["distribution"]))
    by_name = {row["name"]: row for row in rows}
    assert by_name["sound"]["offers"]["callbacks"] == ["a", "b"]
    assert by_name["sound"]["error"] is None
    assert by_name["unknown"]["error"]["hint"] == ["did you mean 'ptrain_models'?"]
    assert by_name["twice"]["state"] == "duplicate"


def test_an_empty_list_says_how_to_start(installed, ptrain):
    typed = ptrain("plugins")
    assert (typed.code, typed.out) == (
        0,
        "no plugins are installed; start one with: ptrain plugins new NAME\n",
    )


def test_the_list_honours_the_allow_list(installed, ptrain, monkeypatch):
    install_sound(installed)
    install_broken(installed)
    monkeypatch.setenv("PTRAIN_PLUGINS", "sound")
    lines = ptrain("plugins").out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == [
        "name",
        "sound",
        "PTRAIN_PLUGINS",
    ]
    assert lines[-1] == (
        "PTRAIN_PLUGINS hides: absent, exits, future, misspelt, twice, twice, unknown"
    )


def test_show_lists_what_a_plugin_offers(installed, ptrain):
    install_sound(installed)
    typed = ptrain("plugins", "show", "sound")
    assert typed.code == 0
    assert typed.out.splitlines()[0] == "sound 0.3.0"
    rows = [line.split() for line in typed.out.splitlines()[2:]]
    assert rows[1] == ["model", "sound/base", "A", "model", "yes"]
    assert rows[2] == ["callback", "sound/a"]
    shown = json.loads(ptrain("plugins", "show", "sound", "--json").out)
    assert shown["models"][0]["target"] == "ptrain_sound.model:Model"


def test_showing_a_plugin_that_is_broken_is_an_error(installed, ptrain):
    install_broken(installed)
    typed = ptrain("plugins", "show", "absent")
    assert typed.code == 2
    assert typed.err.splitlines()[0] == (
        "error: plugin 'absent' (ptrain-absent 0.1.0) could not be imported"
    )
    assert "Traceback" not in typed.err


@pytest.mark.process
def test_check_is_content_with_a_sound_plugin(installed, ptrain):
    install_sound(installed)
    typed = ptrain("plugins", "check", "sound")
    assert (typed.code, typed.out) == (0, "sound: ok\n")


@pytest.mark.process
def test_check_without_a_name_checks_all_and_fails_if_one_is_wrong(installed, ptrain):
    install_sound(installed)
    install_broken(installed)
    typed = ptrain("plugins", "check")
    assert typed.code == 1
    assert "sound: ok" in typed.out
    assert "future: wrong" in typed.out
    results = {
        row["name"]: row["problems"] for row in json.loads(ptrain("plugins", "check", "--json").out)
    }
    assert list(results) == ["absent", "exits", "future", "misspelt", "sound", "twice", "unknown"]
    assert results["sound"] == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("changes", "files", "problem"),
    [
        (
            {"distribution": "sound-plugin"},
            {},
            "its distribution is sound-plugin; by its name it would be ptrain-sound",
        ),
        ({}, {"model.py": "import a_package_that_is_not_there"}, "could not be imported"),
        ({}, {"model.py": "Settings = 3\nclass Model: ..."}, "but that is not a dataclass"),
        ({}, {"model.py": MODEL.replace("class Model: ...", "Model = 3")}, "cannot be called"),
        (
            {},
            {"model.py": MODEL.replace("ptrain_step_end", "ptrain_step_ended")},
            "callback 'a' implements ptrain_step_ended, which is not a hook",
        ),
        ({}, {"model.py": MODEL.replace("outcome", "outcom")}, "did you mean 'outcome'?"),
        ({}, {"model.py": MODEL.replace("ptrain_step_end", "on_step_end")}, "'a' has no hook"),
        ({}, {"hooks.py": ROWS}, "offered as 'rows', has no train()"),
        ({}, {"small.toml": "length = = 3"}, "recipe 'small': "),
        (
            {},
            {"small.toml": "seed = 1\nlenght = '1 epoch'\n"},
            "recipe 'small': small.toml:2: lenght: no such key; did you mean 'length'?",
        ),
        (
            {},
            {"small.toml": "model = 'sound/base'\nmodel_settings.widht = 1\n"},
            "recipe 'small': small.toml:2: model_settings.widht: no such key; did you mean 'width",
        ),
        (
            {},
            {"small.toml": "plugins = ['nowhere']\n"},
            "recipe 'small': no installed plugin is called 'nowhere'",
        ),
        (
            {},
            {"hooks.py": "try:\n    import torch\nexcept ImportError: ...\n"},
            "imports torch, at ",
        ),
    ],
)
def test_check_finds(installed, ptrain, changes, files, problem):
    sources = {"model.py": MODEL, "small.toml": ""}
    sources.update({name: text for name, text in files.items() if name != "hooks.py"})
    hooks = files.get("hooks.py", "") + textwrap.dedent(SOUND)
    installed.install("sound", hooks=hooks, files=sources, **changes)
    typed = ptrain("plugins", "check", "sound")
    assert typed.code == 1
    assert problem in typed.out


@pytest.mark.process
def test_check_says_which_line_imports_torch(installed, ptrain):
    installed.install(
        "heavy",
        hooks="import ptrain_heavy.helper\nPTRAIN_API = 1\ndef ptrain_models(): return []\n",
        files={"helper.py": "import os\nimport sys\nimport torch.nn\n"},
    )
    typed = ptrain("plugins", "check", "heavy")
    assert "imports torch, at " in typed.out
    assert "ptrain_heavy/helper.py:3; name targets as strings instead" in typed.out


@pytest.mark.process
def test_a_hook_module_may_look_whether_torch_is_there(installed, ptrain):
    installed.install(
        "careful",
        hooks="from importlib.util import find_spec\nFOUND = find_spec('torch')\n"
        "PTRAIN_API = 1\ndef ptrain_models(): return []\n",
    )
    assert ptrain("plugins", "check", "careful").code == 0


@pytest.mark.process
def test_check_leaves_out_what_says_that_it_needs_an_absent_package(installed, ptrain):
    installed.install(
        "optional",
        hooks="""
        from plugin_trainer.specs import CallbackSpec
        PTRAIN_API = 1
        def ptrain_callbacks():
            return [CallbackSpec(name="a", target="nowhere:A", requires=("nowhere",))]
        """,
    )
    assert ptrain("plugins", "check", "optional").code == 0


def test_check_takes_a_path(installed, ptrain):
    installed.write("toy.py", "PTRAIN_API = 1\ndef ptrain_models(): return []\n")
    assert ptrain("plugins", "check", "./toy.py").out == "./toy.py: ok\n"
