"""`ptrain run` trains what was named, says how it went, and exits with a code that tells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main
from tests import forkserver

PLUGIN = ("--plugin", "./toy.py")
QUICK = (*PLUGIN, "--set", "callbacks=['-tensorboard']")


def test_a_plugin_alone_is_trained_and_the_end_says_everything(toy, ptrain):
    typed = ptrain("run", *PLUGIN)
    assert typed.code == 0
    assert re.search(r"^finished: 2 epochs are done \(12 steps, \d+ s\)$", typed.out, re.M)
    assert re.search(r"^metric +raw +ema$", typed.out, re.M)
    assert re.search(r"^val/accuracy +[01]\.\d{4} +[01]\.\d{4}$", typed.out, re.M)
    assert re.search(r"^best val/accuracy \S+ at step \d+: step-000000\d\d$", typed.out, re.M)
    assert "the run is in runs/toy-1" in typed.out
    assert "ptrain evaluate runs/toy-1" in typed.out and "ptrain predict runs/toy-1" in typed.out
    assert re.search(r"toy/net on toy/rows\n +folder +runs/toy-1\n", typed.err)
    assert re.search(r"step 3/12  loss ", typed.err)
    assert Path("runs/toy-1/assets/toy.json").is_file()


def test_everything_printed_fits_80_columns(toy, ptrain):
    typed = ptrain("run", *PLUGIN)
    assert [line for line in (typed.out + typed.err).splitlines() if len(line) > 80] == []


def test_a_run_whose_output_nobody_reads_any_more_finishes(toy, monkeypatch):
    source = Path("toy.py").read_text()  # what a callback prints must not end it either
    Path("toy.py").write_text(f"{source}\n\ndef ptrain_step_end():\n    print('x' * 9000)\n")
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    assert main(["run", *PLUGIN, "--out", "out"]) == 0
    assert json.loads(Path("out/run.json").read_text())["status"] == "finished"
    sys.stdout.close()  # with what is left in it, as Python does at its end
    sys.stderr.close()


def test_two_runs_have_two_folders_and_a_name_chooses_one(toy, ptrain):
    for name in ("toy-1", "toy-2"):
        assert f"runs/{name}" in ptrain("run", *QUICK, "--set", "length='1 steps'").out
    assert (
        "runs/mine" in ptrain("run", *QUICK, "--set", "name=mine", "--set", "length='1 steps'").out
    )


def test_a_run_file_and_set_over_it(toy, ptrain):
    Path("run.toml").write_text('plugins = ["./toy.py"]\nlength = "9 epochs"\nseed = 4\n')
    typed = ptrain("run", "run.toml", "--set", "length=2 steps", "--out", "out")
    assert typed.code == 0 and "finished: 2 steps are done" in typed.out
    assert "seed = 4" in Path("out/run.toml").read_text()


def test_keys_that_the_model_does_not_take_are_named(toy, ptrain):
    source = Path("toy.py").read_text()
    source = source.replace(
        "return DataLoader(TensorDataset(features, labels), batch_size=4, shuffle=shuffle)",
        "return [{'input': f[None], 'labels': y[None], 'number': y} "
        "for f, y in zip(features, labels)]",
    )
    Path("toy.py").write_text(source)
    typed = ptrain("run", *QUICK, "--set", "length=2 steps")
    assert typed.code == 0
    assert "not passed to the model: labels, number" in typed.err


# ------------------------------------------------------------------------------------------- resume


def test_a_finished_run_reports_and_exits_0(trained, ptrain):
    typed = ptrain("run", *PLUGIN, "--out", "runs/first", "--resume", "auto")
    assert typed.code == 0
    assert typed.out == (
        "runs/first is finished already: 2 epochs are done\n"
        "  to train it for longer: --set length=... --allow length\n"
    )


def test_a_finished_run_made_longer_goes_on(trained, ptrain):
    typed = ptrain(
        "run", *PLUGIN, "--out", "runs/first", "--resume", "auto",
        "--set", "length=3 epochs", "--allow", "length",
    )  # fmt: skip
    assert typed.code == 0
    assert "going on from runs/first/checkpoints/step-00000012, step 12" in typed.err
    assert 'length: "2 epochs" -> "3 epochs"' in typed.err
    assert "finished: 3 epochs are done (18 steps" in typed.out


def test_a_run_is_resumed_by_its_name_with_its_own_settings(trained, ptrain):
    typed = ptrain("run", "--resume", "first", "--set", "length=3 epochs", "--allow", "length")
    assert typed.code == 0 and "(18 steps" in typed.out


def test_auto_starts_a_run_that_is_not_there_yet(toy, ptrain):
    typed = ptrain("run", *QUICK, "--out", "new", "--resume", "auto", "--set", "length=1 steps")
    assert typed.code == 0 and "the run is in new" in typed.out


def test_a_run_that_moved_goes_on_where_it_is(trained, ptrain):
    Path("runs/first").rename("elsewhere")
    typed = ptrain("run", "--resume", "elsewhere", "--set", "length=13 steps", "--allow", "length")
    assert typed.code == 0 and "the run is in elsewhere" in typed.out


# --------------------------------------------------------------------------------------- exit codes


def test_a_failure_of_training_exits_1_with_a_checkpoint_and_no_traceback(toy, ptrain):
    typed = ptrain("run", *PLUGIN, "--set", "callbacks=['break']", "--out", "out")
    assert typed.code == 1
    assert "Traceback" not in typed.err
    error = typed.err[typed.err.index("error: ") :].splitlines()
    assert error[0] == "error: callback 'toy/break' failed in ptrain_step_end at step 2"
    assert error[1] == "  ValueError: broken on purpose"
    assert re.fullmatch(r"  raised at \S*toy\.py:\d+", error[2])
    assert error[3] == "  the traceback is in out/error.txt"
    assert error[4] == "  the run was saved to out/checkpoints/step-00000002 before stopping"


@pytest.mark.parametrize("failing", ["a step", "the model"])
def test_a_dry_run_that_fails_names_no_folder_that_is_gone(toy, ptrain, failing):
    plugin = Path("toy.py")
    if failing == "the model":
        plugin.write_text(plugin.read_text().replace("return nn.Seq", "1 / 0\n    return nn.Seq"))
    typed = ptrain("run", *PLUGIN, "--set", "callbacks=['break']", "--dry-run")
    assert typed.code > 0
    error = typed.err[typed.err.index("error: ") :]
    assert "see everything with --debug" in error
    assert "ptrain-dry-run" not in error


def test_the_traceback_of_a_model_that_cannot_be_built_is_kept_in_a_named_folder(toy, ptrain):
    plugin = Path("toy.py")
    plugin.write_text(
        plugin.read_text().replace("return nn.Sequential", "1 / 0\n    return nn.Sequential")
    )
    typed = ptrain("run", *PLUGIN, "--out", "out")
    assert "the traceback is in out/error.txt" in typed.err
    assert "ZeroDivisionError" in Path("out/error.txt").read_text()
    typed = ptrain("run", *PLUGIN)
    assert "see everything with --debug" in typed.err
    assert not list(Path("runs").iterdir())


def test_debug_shows_the_traceback(toy, ptrain):
    typed = ptrain("run", *PLUGIN, "--set", "callbacks=['break']", "--debug")
    assert typed.code == 1
    assert "Traceback" in typed.err and 'raise ValueError("broken on purpose")' in typed.err


def test_a_loss_that_is_not_finite_exits_1_and_names_the_step(toy, ptrain):
    typed = ptrain(
        "run", *QUICK, "--set", "optimizer.learning_rate=1e38", "--set", "optimizer.name=SGD"
    )
    assert typed.code == 1
    assert re.search(
        r"^error: step \d+: the loss is \S+ and the gradient norm \S+$", typed.err, re.M
    )


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step_and_it_can_go_on(toy, ptrain, number, code):
    command = ["run", *QUICK, "--set", "length=100_000 steps", "--set", "evaluate=never"]
    process = forkserver.Popen(
        [sys.executable, "-m", "plugin_trainer", *command, "--out", "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = Path("out/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted: " in out and "ptrain run --resume out" in out
    assert "Traceback" not in err
    about = json.loads(Path("out/run.json").read_text())
    assert about["status"] == "interrupted"
    step = about["step"]
    typed = ptrain(
        "run", "--resume", "out", "--set", f"length={step + 2} steps", "--allow", "length"
    )  # fmt: skip
    assert typed.code == 0 and f"({step + 2} steps" in typed.out


def test_a_dry_run_does_everything_once_and_keeps_nothing(toy, ptrain):
    typed = ptrain("run", *PLUGIN, "--dry-run")
    assert typed.code == 0
    assert "the dry run went well: toy/net on toy/rows" in typed.out
    assert "step 2: val/accuracy" in typed.err
    assert not Path("runs").exists()


def test_a_dry_run_finds_what_a_run_would_find(toy, ptrain):
    typed = ptrain("run", *PLUGIN, "--set", "best.watch=val/acuracy", "--dry-run")
    assert typed.code == 2
    assert "best.watch: the evaluation gave no metric 'val/acuracy'" in typed.err
