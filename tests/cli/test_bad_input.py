"""Whatever is wrong: one message that says what, where and what to do, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin_trainer.run_folder import RunFolder

PLUGIN = ("run", "--plugin", "./toy.py")

SETS = [
    ("model=toy/nett", "model: no model 'nett' in plugin 'toy'", "did you mean 'toy/net'?"),
    ("data=toy/row", "data: no data module 'row' in plugin 'toy'", "did you mean 'toy/rows'?"),
    ("schedule.name=linaer", "schedule.name: no scheduler 'linaer'", "core/linear"),
    ("callbacks=['early_stoping']", "callbacks: no callback 'early_stoping'", "early_stopping"),
    ("lenght='3 epochs'", "lenght: no such key; did you mean 'length'?", ""),
    ("optimizer.lr=1", "optimizer.lr: no such key; ", ""),
    ("model_settings.widht=3", "model_settings.widht: no such key; did you mean 'width'?", ""),
    ("length=3", "length: 3 has no unit: ", 'write "500 steps" or "1 epoch"'),
    ("save='3 minutes'", "save: 'minutes' in '3 minutes' is not a unit: ", "write"),
    ("length", "--set length: write it as KEY=VALUE", ""),
    ("optimizer.learning_rate=-1", "optimizer.learning_rate: -1 is too small: ", "more than 0"),
    (
        "callback_settings.early_stopping.patience=2",
        "this run has no callback 'early_stopping'",
        "",
    ),
    ("optimizer.name=adamaxx", "torch.optim has no optimizer 'adamaxx'", "did you mean 'Adamax'?"),
    ("loss=CrossEntropy", "loss: torch.nn has no loss 'CrossEntropy'", "CrossEntropyLoss"),
    ("device=cuda:99", "device: 'cuda:99' cannot be used", ""),
    (
        "schedule.warmup='50 steps'",
        "schedule.warmup: 50 steps is no shorter than the whole run",
        "",
    ),
    ("best.watch=val/acc", "best.watch: the evaluation gave no metric 'val/acc'", "val/accuracy"),
    ("data_settings.train_rows=0", "the training data holds no batch", "it is empty"),
    ("data_settings.validation_rows=0", "the validation data is empty", ""),
]


@pytest.mark.parametrize(("assignment", "message", "hint"), SETS, ids=[row[0] for row in SETS])
def test_a_wrong_setting_exits_2_and_says_what_would_be_right(
    toy, ptrain, assignment, message, hint
):
    typed = ptrain(*PLUGIN, "--set", assignment)
    assert typed.code == 2
    error = typed.err[typed.err.index("error: ") :]
    assert message in error and hint in error
    assert "Traceback" not in typed.err and "internal error" not in typed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--plugin", "nosuchplugin"],
            "error: no installed plugin is called 'nosuchplugin'",
        ),
        (["run", "--plugin", "./gone.py"], "error: "),
        (["run", "gone.toml"], "error: there is no run file gone.toml"),
        (["run", "broken.toml"], "error: one mistake in the settings\n  broken.toml: not TOML: "),
        (["run"], "error: 2 mistakes in the settings"),
        ([*PLUGIN, "--resume", "auto"], "error: to resume or overwrite a run, its folder must be"),
        ([*PLUGIN, "--resume", "gone"], "error: there is no run 'gone'"),
        ([*PLUGIN, "--out", "broken.toml"], "error: broken.toml is a file"),
        ([*PLUGIN, "--out", "."], "error: . is not empty and not a run folder"),
        ([*PLUGIN, "--output", "x"], "error: no such option"),
        (["evaluate"], "error: missing argument 'RUN'"),
        (["evaluate", "gone"], "error: there is no run 'gone'"),
        (["predict", "gone", "broken.toml"], "error: there is no run 'gone'"),
        (["rnu"], "error: no such command 'rnu'; did you mean 'run'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_exits_2(toy, ptrain, arguments, message):
    Path("broken.toml").write_text("a = \n")
    typed = ptrain(*arguments)
    assert typed.code == 2
    assert typed.err.startswith(message)
    assert "Traceback" not in typed.err and typed.out == ""
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


EVERYTHING = """\
plugins = ["./toy.py", "dactbret"]
lenght  = "3 epochs"
model   = "toy/net"
save    = "5 minutes"
seed    = "3"
callbacks = ["toy/break", "early_stoping"]

[model_settings]
width = 0
widht = 3

[data_settings]
trian = "x"

[optimizer]
learning_rate = -1

[optimizer.groups."head.*"]
learning_rat = 1

[callback_settings."toy/break"]
step = "two"
mommet = "x"
"""

FOUND = [
    "everything.toml:1: plugins: no installed plugin is called 'dactbret'; did you mean 'dactb",
    "everything.toml:2: lenght: no such key; did you mean 'length'?",
    "everything.toml:4: save: 'minutes' in '5 minutes' is not a unit: write",
    "everything.toml:5: seed: '3' is not a whole number: write it without quotes",
    "everything.toml:6: callbacks: no callback 'early_stoping'; did you mean",
    "everything.toml:9: model_settings.width: 0 is too small: it must be 1 or more",
    "everything.toml:10: model_settings.widht: no such key; did you mean 'width'?",
    "everything.toml:13: data_settings.trian: no such key; did you mean 'train'?",
    "everything.toml:16: optimizer.learning_rate: -1 is too small: it must be more than 0",
    'everything.toml:19: optimizer.groups."head.*".learning_rat: no such key; did you mean',
    "everything.toml:22: callback_settings.\"toy/break\".step: 'two' is not a whole number",
    'everything.toml:23: callback_settings."toy/break".mommet: no such key; did you mean',
    '--set: keep: 0 is not "all" or a number of checkpoints, 1 or more',
]


@pytest.mark.parametrize("command", [["run"], ["config", "check"]])
def test_P01_all_mistakes_come_together_with_file_line_key_and_what_was_meant(toy, ptrain, command):
    Path("everything.toml").write_text(EVERYTHING)
    typed = ptrain(*command, "everything.toml", "--set", "keep=0")
    assert typed.code == 2
    title, *lines = typed.err.splitlines()
    assert title == f"error: {len(FOUND)} mistakes in the settings"
    for line, start in zip(lines, FOUND, strict=True):
        assert line.strip().startswith(start)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.toml", "--plugin", "./toy.py", "--set", "seed=7", "--json"],
        ["--plugin", "./toy.py", "run.toml", "--json", "--set", "seed=7"],
        ["--set", "seed=7", "--json", "--plugin", "./toy.py", "run.toml"],
        ["--set=seed=7", "--json", "--plugin=./toy.py", "--", "run.toml"],
    ],
)
@pytest.mark.parametrize("debug", [0, 1, 2, None])
def test_P02_the_order_of_run_file_and_options_is_free(toy, ptrain, arguments, debug):
    Path("run.toml").write_text("accumulate = 3\n")
    typed = ["config", "show", *arguments]
    if debug is not None:
        typed.insert(debug, "--debug")
    shown = ptrain(*typed)
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["seed"]["value"] == 7 and found["accumulate"]["value"] == 3


def test_P02_an_option_of_a_command_before_its_name_is_told_where_it_belongs(toy, ptrain):
    typed = ptrain("--plugin", "./toy.py", "run")
    assert typed.code == 2
    assert typed.err == (
        "error: no such option '--plugin'\n"
        "  options of a command stand behind its name: ptrain COMMAND --plugin\n"
        "  see: ptrain --help\n"
    )


def test_P04_a_broken_plugin_that_a_run_names_stops_it(toy, ptrain):
    Path("broken.py").write_text("import a_package_that_is_not_there\n")
    typed = ptrain(*PLUGIN, "--plugin", "./broken.py")
    assert typed.code == 2
    assert typed.err.startswith("error: plugin 'broken' (")
    assert "ModuleNotFoundError" in typed.err and "Traceback" not in typed.err


def test_a_missing_file_is_named_and_leaves_no_folder(toy, ptrain):
    typed = ptrain(*PLUGIN, "--set", "data_settings.train=gone.tsv")
    assert typed.code == 2
    assert "FileNotFoundError" in typed.err and "gone.tsv" in typed.err
    assert "Traceback" not in typed.err
    assert not list(Path("runs").glob("*"))


def test_a_label_outside_the_range_fails_the_run_with_its_reason(toy, ptrain):
    typed = ptrain(*PLUGIN, "--set", "data_settings.classes=3")
    assert typed.code == 1
    assert "error: the run failed after step 0" in typed.err
    assert "IndexError: Target 2 is out of bounds." in typed.err
    assert "Traceback" not in typed.err


def test_an_occupied_folder_is_refused_and_untouched(trained, ptrain):
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    typed = ptrain(*PLUGIN, "--out", "runs/first")
    assert typed.code == 2
    assert typed.err == (
        "error: the run folder runs/first is occupied\n"
        "  to resume that run: --resume auto\n"
        "  to start another one elsewhere: --out DIR\n"
        "  to delete that run and start anew: --overwrite\n"
    )
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_a_folder_in_use_is_refused(trained, ptrain):
    holder = RunFolder(Path("runs/first"))
    holder.hold()
    try:
        typed = ptrain(*PLUGIN, "--out", "runs/first", "--resume", "auto")
    finally:
        holder.release()
    assert typed.code == 2
    assert typed.err.startswith("error: the run folder runs/first is in use by process ")


def test_a_changed_setting_is_refused_with_the_difference(trained, ptrain):
    typed = ptrain(*PLUGIN, "--out", "runs/first", "--resume", "auto", "--set", "seed=3")
    assert typed.code == 2
    assert typed.err.splitlines() == [
        "error: the run has changed since runs/first was started",
        "  seed: 0 -> 3",
        "  to go on with the new: --allow seed",
    ]


def test_every_damaged_checkpoint_is_named(trained, ptrain):
    for path in Path("runs/first/checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    typed = ptrain("evaluate", "first")
    assert typed.code == 2
    assert "is not sound: model.safetensors has 0 bytes" in typed.err
    typed = ptrain("run", "--resume", "first", "--set", "length=9 epochs", "--allow", "length")
    assert typed.code == 2
    assert "no checkpoint of runs/first is sound" in typed.err
