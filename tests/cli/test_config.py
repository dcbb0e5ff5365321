"""`ptrain config` shows where each setting came from, and every mistake at once."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGIN = ("--plugin", "./toy.py")


def rows(text: str) -> dict[str, str]:
    """Each line's place, by the line without it."""
    found = [row.partition("  #") for row in text.splitlines() if "  #" in row]
    return {row.strip(): place.strip() for row, _, place in found}


def test_every_key_is_shown_with_the_place_it_was_given(toy, ptrain):
    Path("run.toml").write_text("seed = 5\n[data_settings]\ntrain_rows = 8\n")
    typed = ptrain("config", "show", "run.toml", *PLUGIN, "--set", "model_settings.width=6")
    assert typed.code == 0
    found = rows(typed.out)
    assert found["seed = 5"] == "run.toml:1"
    assert found["train_rows = 8"] == "run.toml:3"
    assert found["width = 6"] == "--set"
    assert found['length = "2 epochs"'] == "toy's recipe:3"
    assert found["decay = 0.9"] == "toy's recipe:17"
    assert found["validation_rows = 12"] == "default"
    assert found["accumulate = 1"] == "default"


def test_what_is_shown_is_a_run_file_that_gives_the_same_run(toy, ptrain):
    first = ptrain("config", "show", *PLUGIN).out
    Path("shown.toml").write_text(first)
    second = ptrain("config", "show", "shown.toml").out
    assert tomllib.loads(second) == tomllib.loads(first)


def test_the_settings_of_a_run_folder_are_shown(trained, ptrain):
    shown = tomllib.loads(ptrain("config", "show", "runs/first/run.toml").out)
    assert shown == tomllib.loads(Path("runs/first/run.toml").read_text())


def test_json_has_each_value_and_its_origin(toy, ptrain):
    found = json.loads(ptrain("config", "show", *PLUGIN, "--set", "ema.decay=0.5", "--json").out)
    assert found["ema.decay"] == {"value": 0.5, "origin": "--set"}
    assert found["seed"] == {"value": 0, "origin": "default"}
    assert found["length"]["origin"] == "toy's recipe:3"


@pytest.mark.parametrize("command", ["show", "check"])
def test_every_mistake_is_named_at_once_with_its_place(toy, ptrain, command):
    Path("run.toml").write_text(
        'lenght = "3 epochs"\nsave = "5 minutes"\n[model_settings]\nwidht = 3\nwidth = 0\n'
    )
    typed = ptrain("config", command, "run.toml", *PLUGIN, "--set", "seed=-1")
    assert typed.code == 2 and typed.out == ""
    assert typed.err.splitlines()[0] == "error: 5 mistakes in the settings"
    assert {line.strip().split(": ")[0] for line in typed.err.splitlines()[1:]} == {
        *("run.toml:1", "run.toml:2", "run.toml:4", "run.toml:5", "--set"),
    }
    assert "run.toml:4: model_settings.widht: no such key; did you mean 'width'?" in typed.err


def test_right_settings_are_said_to_be_right(toy, ptrain):
    typed = ptrain("config", "check", *PLUGIN)
    assert (typed.code, typed.out) == (
        0, "the settings are right: toy/net on toy/rows, 2 epochs\n",
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize(
    "command", [["show"], ["schema"], ["explain", "model_settings.width"]], ids=lambda c: c[0]
)
def test_showing_and_explaining_settings_needs_no_torch(toy, command):
    script = (
        "import sys\nfrom plugin_trainer.cli.main import main\n"
        f"code = main(['config', *{command!r}, '--plugin', './toy.py'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_config_alone_says_what_it_can_do(toy, ptrain):
    typed = ptrain("config")
    assert "show" in typed.out + typed.err and "Traceback" not in typed.err


# ------------------------------------------------------------------------------------------- check

WRONG = [
    (
        "optimizer.name=adamaxx",
        "optimizer.name: torch.optim has no optimizer 'adamaxx'; did you me",
    ),
    (
        "optimizer.settings.beta=1",
        "optimizer.settings.beta: it takes no 'beta'; did you mean 'beta",
    ),
    ("optimizer.settings.lr=1", "optimizer.settings.lr: it is given by optimizer.learning_rate"),
    ("loss=CrossEntropy", "loss: torch.nn has no loss 'CrossEntropy'; there are: "),
    ("loss=nowhere:Loss", "loss: nowhere:Loss could not be imported; ModuleNotFoundError"),
    ("schedule.name=OneCycleLR", "schedule_settings.max_lr: it is required"),
    ("schedule.name=StepLR", "schedule_settings.step_sz: it takes no 'step_sz'; did yo"),
    (
        "schedule.warmup='2 epochs'",
        "schedule.warmup: 2 epochs is no shorter than the whole run of ",
    ),
    (
        "schedule.warmup='100 %'",
        "schedule.warmup: 100 % is no shorter than the whole run of 2 epoc",
    ),
    ("best.watch=accuracy", "best.watch: 'accuracy' names no split; did you mean 'val/accuracy'?"),
    ("best.watch=val_ema/loss", "best.watch: it is named as for raw weights: 'val/loss'"),
    ("best.watch=test/loss", "best.watch: 'test/loss' is of no evaluation"),
    ("model=nowhere:Net", "nowhere:Net could not be imported"),
]


@pytest.mark.parametrize(("assignment", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_check_finds_what_would_stop_the_run_when_it_is_put_together(
    toy, ptrain, assignment, message
):
    more = ("--set", "schedule_settings.step_sz=3") if "StepLR" in assignment else ()
    typed = ptrain("config", "check", *PLUGIN, "--set", assignment, *more)
    assert typed.code == 2 and typed.out == ""
    assert message in typed.err
    assert "Traceback" not in typed.err and "internal" not in typed.err


def test_check_names_all_that_torch_would_refuse_with_the_place(toy, ptrain):
    Path("run.toml").write_text(
        'callbacks = ["early_stopping"]\nloss = "Los"\n[callback_settings.early_stopping]\n'
        'watch = "loss"\n[optimizer]\nname = "sgd"\n[optimizer.settings]\nmomentun = 0.9\n'
    )
    typed = ptrain("config", "check", "run.toml", *PLUGIN)
    assert [line.split(": ")[0].strip() for line in typed.err.splitlines()[1:]] == [
        "run.toml:2", "run.toml:4", "run.toml:8",
    ]  # fmt: skip


def test_check_looks_for_what_is_missing_in_the_run_file(toy, ptrain):
    Path("run.toml").write_text('[schedule]\nname = "OneCycleLR"\n')
    typed = ptrain("config", "check", "run.toml", *PLUGIN)
    missing = "run.toml: schedule_settings.max_lr: it is required"
    assert typed.err.splitlines()[1].strip().startswith(missing)


def test_what_is_allowed_and_perhaps_not_meant_is_only_noted(toy, ptrain):
    typed = ptrain(
        "config", "check", *PLUGIN, "--set", "save=9 epochs", "--set", "evaluate=5 steps"
    )
    assert typed.code == 0 and typed.out.startswith("the settings are right")
    assert typed.err == (
        "note: save: every 9 epochs is longer than the run of 2 epochs: "
        "it happens at the end only\n"
    )


@pytest.mark.parametrize(
    "assignments",
    [
        ["schedule.name=OneCycleLR", "schedule_settings.max_lr=0.1"],
        ["schedule.name=StepLR", "schedule_settings.step_size=3"],
        ["schedule.name=ReduceLROnPlateau"],
        ["optimizer.name=SGD", "optimizer.settings.momentum=0.9"],
        ["optimizer.settings.betas=[0.9, 0.98]", "optimizer.settings.fused=false"],
        ["schedule.warmup=5 steps", "length=6 steps"],
        ["schedule.warmup=99 %"],
        ["best.watch=val/my_task/f1"],
    ],
    ids=lambda assignments: assignments[0],
)
def test_check_lets_pass_what_torch_takes(toy, ptrain, assignments):
    sets = [part for assignment in assignments for part in ("--set", assignment)]
    typed = ptrain("config", "check", *PLUGIN, *sets)
    assert (typed.code, typed.err) == (0, "")


# ------------------------------------------------------------------------------------------ schema


def test_the_schema_of_a_run_file_knows_the_plugins_it_names(toy, ptrain):
    Path("run.toml").write_text('plugins = ["./toy.py"]\n')
    for arguments in (PLUGIN, ("run.toml",)):
        typed = ptrain("config", "schema", *arguments)
        assert typed.code == 0
        schema = json.loads(typed.out)
        assert schema["properties"]["model"]["anyOf"][0]["enum"][:2] == ["toy/net", "net"]
        assert schema["$defs"]["NetSettings"]["properties"]["width"]["minimum"] == 1
    assert "NetSettings" not in json.loads(ptrain("config", "schema").out)["$defs"]


def test_the_schema_suggests_what_is_installed_and_leaves_out_what_is_broken(installed, ptrain):
    installed.install("vision")
    installed.install("broken", hooks="raise SystemExit('broken')")
    schema = json.loads(ptrain("config", "schema").out)
    assert schema["properties"]["plugins"]["items"]["examples"] == ["broken", "vision"]
    assert schema["properties"]["model"]["anyOf"][0]["enum"] == ["vision/base", "base"]
    typed = ptrain("config", "schema", "--plugin", "broken")
    assert typed.code == 2 and "plugin 'broken'" in typed.err and typed.out == ""


# ----------------------------------------------------------------------------------------- explain


def test_a_key_is_explained_in_a_few_lines(toy, ptrain):
    typed = ptrain("config", "explain", "model_settings.width", *PLUGIN, "--set", "seed=3")
    assert typed.code == 0
    assert typed.out.splitlines() == [
        "model_settings.width",
        "  value    4",
        "  origin   default",
        "  default  4",
        "  takes    a whole number, 1 or more",
        "  part of  toy/net",
    ]


def test_core_is_explained_without_a_run(toy, ptrain):
    found = json.loads(ptrain("config", "explain", "optimizer", "--json").out)
    assert found["keys"][1]["key"] == "optimizer.learning_rate"
    assert found["keys"][1]["value"] == 0.001
    assert "off" in ptrain("config", "explain", "ema").out.splitlines()[1].split()


def test_what_a_run_does_not_use_is_said_to_be_no_part_of_it(toy, ptrain):
    typed = ptrain("config", "explain", "callback_settings.early_stopping.patience", *PLUGIN)
    assert "  value    not part of this run\n  default  3\n" in typed.out


@pytest.mark.parametrize(
    "key", ["optimizer", "schedule.name", "callback_settings", "model_settings", "init_from"]
)
def test_an_explanation_is_80_columns_wide(toy, ptrain, key):
    lines = ptrain("config", "explain", key, *PLUGIN).out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 3


def test_a_key_that_does_not_exist_exits_2_with_the_nearest(toy, ptrain):
    typed = ptrain("config", "explain", "optimizer.learnig_rate")
    assert (typed.code, typed.out) == (2, "")
    assert typed.err == (
        "error: no such key 'optimizer.learnig_rate'\n  did you mean 'optimizer.learning_rate'?\n"
    )
