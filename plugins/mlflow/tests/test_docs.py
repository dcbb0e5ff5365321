"""What README.md shows is run, and what it says of names, files and waits is so."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import mlflow
import pytest
from ptrain_mlflow import hooks, logger, store
from ptrain_mlflow.naming import name_for

from plugin_trainer.cli.main import main

PAGE = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_run_file_is_one(tmp_path, capsys):
    (text,) = blocks("toml")
    (tmp_path / "run.toml").write_text(text)
    assert main(["config", "check", "run.toml"]) == 0, capsys.readouterr()
    assert tomllib.loads(text)["callback_settings"]["mlflow/logger"]["experiment"] == "films"


def test_a_program_that_begins_a_run_finds_the_training_in_it(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)  # taken back afterwards
    (program,) = blocks("python")
    exec(compile(program, "README.md", "exec"), {})
    (run,) = store.client.search_runs(["0"])
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert {"opinion", "train/loss", "val/loss"} <= set(run.data.metrics)
    assert {"question", "length"} <= set(run.data.params)
    mlflow.set_tracking_uri(None)


def test_the_commands_can_be_typed(fit, store):
    lines = [
        shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()
    ]
    typed = [words[1:] for words in lines if words[0] == "ptrain"]
    assert typed == [["run", "--plugin", "dactbert", "--plugin", "mlflow"],
                     ["mlflow", "runs/dactbert-1"]]  # fmt: skip
    fit(out="runs/dactbert-1")
    assert main(typed[1]) == 0
    small = ["--set", "data_settings.examples=64", "--set", "data_settings.validation_examples=50"]
    assert main([*typed[0], *small, "--dry-run"]) == 0


def test_names_settings_and_waits_are_as_the_page_says(capsys):
    assert name_for("val/f1@5") == "val/f1_5-67db1a99"
    assert [spec.name for spec in hooks.ptrain_callbacks()] == ["logger"]
    assert (logger._START_S, logger._END_S, logger._UPLOAD_S) == (30, 30, 600)
    assert store.METRICS["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert (store.EMBEDDED, store.ARTIFACTS) == ("sqlite:///mlflow.db", "mlartifacts")
    assert main(["plugins", "show", "mlflow"]) == 0
    shown = capsys.readouterr().out
    for setting in ("send_every_s", "best_checkpoint", "active_run", "tracking_uri"):
        assert setting in shown
        assert f"`{setting}`" in PAGE or f"{setting} " in PAGE
    for tag in ("reason", "folder", "host", "resumed", "changed", "differing"):
        assert f"`ptrain.{tag}`" in PAGE


@pytest.mark.parametrize("kind", ["nest", "ignore", "saved"])
def test_the_choices_are_named(kind):
    assert f'"{kind}"' in PAGE
