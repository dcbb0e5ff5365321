"""Whatever is wrong: one message that says what, where and what to do, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin_trainer.training.run_folder import RunFolder

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
        ([*PLUGIN, "--resume", "auto"], "error: resuming by itself needs to know which run"),
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
        "  to go on with that run: --resume auto\n"
        "  to start another: --out DIR\n"
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
        "error: the settings differ from those that runs/first was started with",
        "  seed: 0 -> 3",
        "  to go on with the new ones: --allow seed",
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
