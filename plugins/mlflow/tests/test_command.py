"""`ptrain mlflow RUN` brings MLflow up to date with what is in a run's folder."""

from __future__ import annotations

import os
import signal

import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.errors import PtrainError
from plugin_trainer.run_folder import RunFolder

PLAIN = {"callbacks": ("-mlflow/logger",), "callback_settings": {}}


def test_a_run_that_never_heard_of_mlflow_can_be_sent(fit, store, logged):
    fit(**PLAIN)
    assert main(["mlflow", "run"]) == 0
    run = store.run()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert store.history("train/loss") == logged("train/loss")
    assert "ptrain.resumed" not in run.data.tags


def test_sending_a_run_again_adds_nothing(fit, store, logged):
    fit()
    first = store.run()
    assert main(["mlflow", "run"]) == 0
    again = store.run()
    assert store.history("train/loss") == logged("train/loss")
    assert again.info.status == "FINISHED"
    assert again.data.params == first.data.params
    assert "ptrain.resumed" not in again.data.tags


def test_several_runs_go_into_the_experiment_that_is_asked_for(fit, store):
    fit(**PLAIN)
    fit(out="other", **PLAIN)
    assert main(["mlflow", "run", "other", "--experiment", "old"]) == 0
    assert {run.info.run_name for run in store.runs("old")} == {"run", "other"}


@pytest.mark.process
def test_a_run_that_was_killed_is_closed_as_killed(forked, fit, store, at):
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(callbacks=(at(5, kill),)) == -signal.SIGKILL
    assert store.run().info.status == "RUNNING"
    assert main(["mlflow", "run"]) == 0
    assert store.run().info.status == "KILLED"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_it_closes_a_run_as_it_ended(fit, store, at, status):
    def fail():
        raise RuntimeError("the disk of dreams is full")

    def ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)

    if status == "FAILED":
        with pytest.raises(PtrainError):
            fit(**{**PLAIN, "callbacks": (*PLAIN["callbacks"], at(5, fail))})
    else:
        fit(**{**PLAIN, "callbacks": (*PLAIN["callbacks"], at(5, ctrl_c))})
    assert main(["mlflow", "run"]) == 0
    assert store.run().info.status == status


def test_a_run_in_training_is_left_alone(fit, store, tmp_path, capsys):
    fit(**PLAIN)
    held = RunFolder(tmp_path / "run")
    held.hold()
    assert main(["mlflow", "run"]) == 2
    held.release()
    assert capsys.readouterr().err == "error: run is in training\n  wait for its end\n"
    assert store.runs() == []


def test_a_store_that_is_not_there(fit, capsys):
    fit(**PLAIN)
    assert main(["mlflow", "run", "--tracking-uri", "http://127.0.0.1:9"]) == 2
    message = "error: run could not be sent to http://127.0.0.1:9: Connection refused\n"
    assert capsys.readouterr().err == message


def test_no_such_run(capsys):
    assert main(["mlflow", "nowhere"]) == 2
    assert "there is no run 'nowhere'" in capsys.readouterr().err
