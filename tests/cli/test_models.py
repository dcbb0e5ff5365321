"""`ptrain models`: from register to export, at 80 columns, and quick where nothing is loaded."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver

MODULES = """
import json, sys
from plugin_trainer.cli.main import main
code = main(sys.argv[1:])
print("MODULES", json.dumps(sorted(sys.modules)))
sys.exit(code)
"""

TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d"


@pytest.fixture(autouse=True)
def _no_other_store(monkeypatch):
    monkeypatch.delenv("PTRAIN_MODELS", raising=False)


def register(ptrain, *options: str):
    typed = ptrain("models", "register", "first", "--name", "signs", *options)
    assert typed.code == 0, typed.err
    return typed.out


def test_a_model_goes_from_register_to_predict_and_evaluate(trained, ptrain):
    assert register(ptrain, "--alias", "production", "--tag", "owner=ann") == (
        "signs:1 is new: step 6, raw weights, val/accuracy 1\nsigns@production is signs:1\n"
    )
    typed = ptrain("models", "export", "signs@production", "out")
    assert re.fullmatch(
        r"signs:1 is in out: \d+ files, \S+ kB\n  use it: ptrain predict out INPUT.txt\n", typed.out
    )
    Path("input.txt").write_text("1 2 3\n-1 -2 -3\n")
    assert ptrain("predict", "out", "input.txt").out == '{"sign": "+"}\n{"sign": "-"}\n'
    first = ptrain("evaluate", "first", "--json")
    measured = json.loads(ptrain("evaluate", "out", "--json").out)
    assert measured["val/accuracy"] == json.loads(first.out)["val/accuracy"]
    shown = ptrain("runs", "show", "out")
    assert shown.code == 0 and "best val/accuracy 1 at step 6" in shown.out


def test_a_model_whose_data_cannot_predict_is_registered_with_a_word(toy, ptrain):
    plugin = Path("toy.py")
    plugin.write_text(plugin.read_text().replace("def decode", "def decoded"))
    typed = ptrain("run", "--plugin", "./toy.py", "--set", "length=1 steps", "--out", "runs/first")
    assert typed.code == 0
    assert "signs:1: it cannot predict: its data module has no predict" in register(ptrain)
    assert "ptrain predict" not in ptrain("models", "export", "signs", "out").out


def test_a_model_without_an_onnx_export_is_refused_in_words(trained, ptrain):
    register(ptrain)
    for model in ("signs", "runs/first"):
        typed = ptrain("models", "export", model, "out", "--format", "onnx")
        assert (typed.code, typed.out) == (2, "")
        assert typed.err.startswith("error: toy/net has no ONNX export\n  models that have one: ")
    assert not Path("out").exists()
    assert ptrain("models", "export", "nobody", "out", "--format", "onnx").code == 2


@pytest.mark.parametrize("options", [["--int8"], ["--max-loss", "1%"], ["--exit", "1%"]])
def test_what_is_for_onnx_is_a_usage_error_with_a_run_folder(trained, ptrain, options):
    register(ptrain)
    typed = ptrain("models", "export", "signs", "out", *options)
    assert typed.code == 2 and f"{options[0]} is for --format onnx" in typed.err
    assert not Path("out").exists()


def test_an_export_is_not_trained_on_but_from(trained, ptrain):
    register(ptrain)
    ptrain("models", "export", "signs", "out")
    typed = ptrain("run", "--resume", "out")
    assert typed.code == 2 and "holds weights only" in typed.err
    typed = ptrain("run", "--plugin", "./toy.py", "--set", "init_from=out", "--out", "runs/second")
    assert typed.code == 0 and "starting from the raw weights of out" in typed.err


def test_the_list_has_a_line_a_model_and_versions_a_line_a_version(trained, ptrain):
    register(ptrain, "--alias", "best")
    register(ptrain, "--weights", "ema", "--alias", "production")
    ptrain("models", "register", "first", "--name", "other", "--checkpoint", "last")
    for command in (["models"], ["models", "list"]):
        header, other, signs = ptrain(*command).out.splitlines()
        assert header.split() == ["newest", "metric", "aliases", "registered"]
        assert re.fullmatch(rf"other:1 +val/accuracy 1 +{TIME}", other)
        assert re.fullmatch(rf"signs:2 +val/accuracy 1 +@best 1, @production 2 +{TIME}", signs)
    header, *rows = ptrain("models", "versions", "signs").out.splitlines()
    assert header.split() == ["version", "aliases", "metric", "from", "registered"]
    assert re.fullmatch(rf"1 +@best +val/accuracy 1 +runs/first, step 6 +{TIME}", rows[0])
    assert re.match(rf"2 +@production +val/accuracy 1 +runs/first, step 9, ema +{TIME}", rows[1])
    assert max(map(len, rows)) <= 80


def test_a_version_is_shown_with_its_metrics_and_origin(trained, ptrain):
    register(ptrain, "--tag", "owner=ann", "--alias", "best")
    for reference in ("signs", "signs:1", "signs@best"):
        typed = ptrain("models", "show", reference)
        assert typed.code == 0
        assert typed.out.startswith("signs:1 @best\n\n")
        for row in ("step        6 of 12", "tags        owner=ann", "model       toy/net",
                    "plugins     core 0.1.0, toy", "run         runs/first"):  # fmt: skip
            assert f"\n  {row}\n" in typed.out, typed.out
        assert re.search(r"^val/accuracy +1\.0000$", typed.out, re.M)
        assert all(len(line) <= 80 for line in typed.out.splitlines())


def test_json_is_for_programs(trained, ptrain):
    out = ptrain("models", "register", "first", "--name", "signs", "--json").out
    assert json.loads(out)["version"] == 1 and json.loads(out)["new"] is True
    for command in (["models", "--json"], ["models", "list", "--json"]):
        (model,) = json.loads(ptrain(*command).out)
        assert (model["name"], model["newest"], model["aliases"]) == ("signs", 1, {})
        assert model["versions"][0]["metrics"]["val/accuracy"] == 1.0
    (version,) = json.loads(ptrain("models", "versions", "signs", "--json").out)
    assert version == json.loads(ptrain("models", "show", "signs", "--json").out)
    assert version["settings"]["model"] == "toy/net" and version["plugins"] and version["files"]
    (checked,) = json.loads(ptrain("models", "verify", "--json").out)
    assert (checked["name"], checked["version"], checked["damaged"]) == ("signs", 1, {})


def test_an_alias_says_where_it_comes_from(trained, ptrain):
    register(ptrain)
    register(ptrain)
    assert ptrain("models", "alias", "signs:1", "production").out == (
        "signs@production is signs:1\n"
    )
    assert ptrain("models", "alias", "signs", "production").out == (
        "signs@production is signs:2 (was signs:1)\n"
    )
    assert register(ptrain, "--alias", "production").endswith(
        "signs@production is signs:3 (was signs:2)\n"
    )
    assert ptrain("models", "alias", "signs", "production", "--remove").out == (
        "signs@production is no more (was signs:3)\n"
    )
    assert register(ptrain, "--alias", "best").endswith("signs@best is signs:4\n")
    assert register(ptrain, "--alias", "best").endswith(
        "signs@best stays signs:4, val/accuracy 1\n"
    )


def test_once_says_which_version_it_is_already(trained, ptrain):
    register(ptrain, "--once")
    assert register(ptrain, "--once") == (
        "signs:1 is this checkpoint already: step 6, raw weights, val/accuracy 1\n"
    )


def test_tags_are_set_and_taken_away(trained, ptrain):
    register(ptrain, "--tag", "owner=ann")
    assert ptrain("models", "tag", "signs", "a=b=c", "--remove", "owner").out == "signs:1: a=b=c\n"
    assert ptrain("models", "tag", "signs:1", "--remove", "a").out == "signs:1: no tags\n"
    typed = ptrain("models", "tag", "signs", "owner")
    assert (typed.code, typed.err) == (2, "error: 'owner' is not a tag\n  write it as KEY=VALUE\n")


def test_verify_names_what_is_damaged(trained, ptrain):
    register(ptrain)
    register(ptrain, "--weights", "ema")
    typed = ptrain("models", "verify")
    assert typed.code == 0 and typed.out.startswith("2 versions whole: ")
    card = json.loads(ptrain("models", "show", "signs:1", "--json").out)
    path, file = next(item for item in card["files"].items() if "model.safetensors" in item[0])
    place = Path("models/artifacts") / file["sha256"][:2] / file["sha256"]
    place.chmod(0o644)
    place.write_bytes(b"x" * file["size"])
    for command in (["verify"], ["verify", "signs:1"]):
        typed = ptrain("models", *command)
        count = "1 of 2 versions" if command == ["verify"] else "1 of 1 version"
        assert typed.code == 2 and typed.out == ""
        assert typed.err.startswith(
            f"error: {count} damaged\n  signs:1: {path}: its hash does not fit\n"
        )
    assert ptrain("models", "verify", "signs:2").code == 0
    assert ptrain("models", "export", "signs:1", "out").code == 2 and not Path("out").exists()


# ------------------------------------------------------------------------------------------ remove


def test_remove_with_yes_removes_and_says_what_went(trained, ptrain):
    register(ptrain)
    register(ptrain)
    typed = ptrain("models", "remove", "signs:1", "--yes")
    assert typed.out == "removed signs:1: its files are those of other versions, too, and stay\n"
    typed = ptrain("models", "remove", "signs", "--all", "--yes")
    assert re.fullmatch(r"removed signs:2: \d+ files, \S+ kB deleted\n", typed.out)
    assert ptrain("models").out.startswith("there is no model in models/; register one: ")


def test_remove_refuses_what_is_in_use_and_what_is_not_said(trained, ptrain):
    register(ptrain, "--alias", "production")
    for command, said in {
        ("signs:1", "--yes"): "signs:1 is @production",
        ("signs", "--yes"): "which version of signs?",
        ("signs:1", "--all", "--yes"): "--all is for a whole model, and signs:1 is one version",
        ("signs", "--all"): "remove signs:1? there is nobody to ask",
    }.items():
        typed = ptrain("models", "remove", *command)
        assert typed.code == 2 and said in typed.err
    assert "signs:1" in ptrain("models").out


@pytest.mark.process
@pytest.mark.parametrize(("typed", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_remove_asks_on_a_terminal(trained, ptrain, typed, left):
    register(ptrain)
    ours, theirs = pty.openpty()
    process = forkserver.Popen(
        [sys.executable, "-m", "plugin_trainer", "models", "remove", "signs:1"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.write(ours, typed.encode())
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0 and out.startswith("remove signs:1? [y/N]: ")
    assert ("nothing was removed" in out) == bool(left)
    assert len(json.loads(ptrain("models", "--json").out)) == left


# ---------------------------------------------------------------------------------- where, and not


def test_the_store_is_named_by_option_variable_or_default(trained, ptrain, monkeypatch):
    register(ptrain, "--store", "here")
    monkeypatch.setenv("PTRAIN_MODELS", "variable")
    register(ptrain)
    monkeypatch.delenv("PTRAIN_MODELS")
    assert not Path("models").exists()
    for command in (["models", "list", "--store", "here"], ["models", "--store", "variable"],
                    ["models", "--store", "here", "list"]):  # fmt: skip
        assert "signs:1" in ptrain(*command).out
    monkeypatch.setenv("PTRAIN_MODELS", "variable")
    assert "signs:1" in ptrain("models", "--store", "here", "show", "signs").out


def test_nothing_is_made_by_looking(toy, ptrain):
    before = set(Path().iterdir())
    assert ptrain("models").out == (
        "there is no model in models/; register one: ptrain models register RUN --name NAME\n"
    )
    assert json.loads(ptrain("models", "list", "--json").out) == []
    typed = ptrain("models", "show", "signs")
    assert (typed.code, typed.err) == (
        2,
        "error: there is no model 'signs'\n  there is none at all\n",
    )
    assert ptrain("models", "verify").out == "0 versions whole: 0 files, 0 bytes\n"
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize("name", ["../x", "a/b", "C:x", "", "..", "a\nb"])
def test_a_name_that_would_leave_its_folder_is_refused(trained, ptrain, name):
    before = set(Path().rglob("*"))
    typed = ptrain("models", "register", "first", "--name", name)
    assert typed.code == 2
    assert typed.err.startswith(f"error: {name!r} cannot be the name of a model\n")
    assert set(Path().rglob("*")) == before


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        *(["models"], ["models", "list", "--json"], ["models", "show", "signs"]),
        *(["models", "versions", "signs"], ["models", "verify"]),
        *(["models", "alias", "signs:1", "x"], ["models", "tag", "signs:1", "a=b"]),
        *(["models", "export", "signs", "out"], ["models", "register", "--help"]),
    ],
)
def test_P03_only_registering_imports_torch(trained, ptrain, command):
    register(ptrain)
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.partition("MODULES ")[2]))
    assert not {"torch", "numpy", "safetensors", "pydantic"} & modules
