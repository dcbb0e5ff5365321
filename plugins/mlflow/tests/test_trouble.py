"""A store that cannot be reached costs the run nothing: that is said once, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import threading
from contextlib import contextmanager

import pytest
from ptrain_mlflow import store as reaching

from plugin_trainer.cli.main import main

STEPS = list(range(1, 13))


@pytest.fixture
def closed_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


def steps(points):
    return [step for step, _ in points]


def test_a_server_that_is_not_there_is_said_once_and_training_goes_on(
    fit, closed_port, capsys, tmp_path
):
    uri = f"http://127.0.0.1:{closed_port}"
    result = fit(logger={"tracking_uri": uri, "send_every_s": 0.01})
    assert result.status == "finished"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"mlflow: cannot log to {uri}: Connection refused",
        "mlflow: training goes on; what it misses is sent later, from metrics.jsonl",
    ]
    assert result.reports["mlflow"].splitlines() == [
        f"in {uri}",
        "not complete, 12 lines of metrics.jsonl could not be sent: Connection refused",
        f"to send it: ptrain mlflow {tmp_path / 'run'}",
    ]


def test_what_a_server_missed_can_be_sent_elsewhere(fit, closed_port, store, logged, capsys):
    fit(logger={"tracking_uri": f"http://127.0.0.1:{closed_port}"})
    assert main(["mlflow", "run", "--tracking-uri", store.uri]) == 0
    run = store.run()
    assert store.history("train/loss") == logged("train/loss")
    assert steps(store.history("train/loss")) == STEPS
    assert run.info.status == "FINISHED"
    assert run.data.params["length"] == "4 epochs"
    assert capsys.readouterr().out == (
        f"run\n  experiment ptrain, run run ({run.info.run_id})\n  in {store.uri}\n"
    )


def test_a_server_that_never_answers_holds_nobody_up_for_long(fit, silent_port, monkeypatch):
    monkeypatch.setitem(reaching.METRICS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setitem(reaching.FILES, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    result = fit(logger={"tracking_uri": f"http://127.0.0.1:{silent_port}"})
    assert "timed out" in result.reports["mlflow"]
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_no_request_is_ever_begun_with_mlflows_own_patience(fit, store, monkeypatch):
    """A thread may begin one while the variables for metrics make way for those for files."""
    name, changes, environment = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", [], reaching.environment

    @contextmanager
    def watched(values):
        changes.append(os.environ.get(name))
        with environment(values):
            changes.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
            yield

    monkeypatch.setattr(reaching, "environment", watched)
    fit()
    assert changes == [None, "10", "0", "60"]
    assert name not in os.environ


def test_a_database_that_must_not_be_written(fit, store, capsys):
    uri = f"sqlite:///file:{store.path}?mode=ro&uri=true"
    result = fit(logger={"tracking_uri": uri})
    assert result.status == "finished"
    said = capsys.readouterr().err
    assert said.startswith(f"mlflow: cannot log to {uri}: attempt to write a readonly database\n")
    assert said.count("\n") == 2
    assert store.runs() == []


def test_a_file_that_is_no_database(fit, tmp_path, capsys):
    (tmp_path / "mlflow.db").write_text("minutes of the meeting\n" * 99)
    assert fit().status == "finished"
    assert "mlflow.db: file is not a database\n" in capsys.readouterr().err
    assert (tmp_path / "mlflow.db").read_text().startswith("minutes")


def test_a_folder_that_cannot_be_made(fit, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert fit(logger={"tracking_uri": f"sqlite:///{tmp_path}/file/mlflow.db"}).status == "finished"
    assert "/file/mlflow.db: File exists" in capsys.readouterr().err


class MountAt:
    """A disk with a database on it that is not mounted until after a step."""

    def __init__(self, step, target, database):
        self.step = step
        self.target = target
        self.database = database

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            self.target.mkdir()
            shutil.copy(self.database, self.target / "mlflow.db")


def test_what_a_store_missed_is_sent_when_it_is_back(fit, tmp_path, logged, capsys, store):
    disk, link = tmp_path / "disk", tmp_path / "link"
    link.symlink_to(disk)
    uri = f"sqlite:///{link}/mlflow.db"
    result = fit(callbacks=(MountAt(6, disk, store.path),), logger={"tracking_uri": uri})
    there = type(store)(disk / "mlflow.db")
    assert there.history("train/loss") == logged("train/loss")
    assert steps(there.history("train/loss")) == STEPS
    assert there.run().info.status == "FINISHED"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"mlflow: cannot log to {uri}: File exists: {link}"
    assert said[2:] == [f"mlflow: {uri} answers again; nothing is missing there"]
    assert "not complete" not in result.reports["mlflow"]


def test_what_a_store_missed_is_sent_when_the_run_is_resumed(fit, tmp_path, logged, store, at):
    ctrl_c = at(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk")
    where = {"tracking_uri": f"sqlite:///{link}/mlflow.db"}
    fit(callbacks=(ctrl_c,), logger=where)
    (tmp_path / "disk").mkdir()
    shutil.copy(store.path, tmp_path / "disk")
    fit(resume="auto", logger=where)
    there = type(store)(tmp_path / "disk" / "mlflow.db")
    assert there.history("train/loss") == logged("train/loss")
    assert there.run().info.status == "FINISHED"


def test_a_database_that_is_taken_for_a_while_misses_nothing(fit, store, logged):
    """MLflow waits 20 s for a lock; here it is gone before."""

    class Hold:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                held = sqlite3.connect(store.path, check_same_thread=False)
                held.execute("BEGIN EXCLUSIVE")
                threading.Timer(0.5, held.close).start()

    fit(callbacks=(Hold(),))
    assert store.history("train/loss") == logged("train/loss")


@pytest.mark.process
def test_two_runs_at_once_make_one_store_and_one_experiment(started, fit, tmp_path, store):
    """Both begin where there is no database."""
    store.path.unlink()
    ended = started(out="one")
    fit(out="two")
    assert ended() == 0
    assert sorted(run.info.run_name for run in store.runs()) == ["one", "two"]
    assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name]
    for run in store.runs():
        assert run.info.status == "FINISHED"
        assert steps(store.history("train/loss", run)) == STEPS


def test_a_failure_is_the_runs_own_where_the_store_is_away_too(fit, closed_port, at, capsys):
    def fail():
        raise RuntimeError("the disk of dreams is full")

    with pytest.raises(Exception, match="failed in ptrain_step_end") as caught:
        fit(callbacks=(at(5, fail),), logger={"tracking_uri": f"http://127.0.0.1:{closed_port}"})
    assert "dreams" in str(caught.value)
    assert not getattr(caught.value, "__notes__", [])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "training goes on" in line] == [lines[1]]
    assert "not complete, 4 lines of metrics.jsonl could not be sent" in lines[3]


def test_no_password_is_shown_or_kept(fit, closed_port, capsys, tmp_path):
    uri = f"http://me:secret@127.0.0.1:{closed_port}"
    result = fit(logger={"tracking_uri": uri})
    shown = capsys.readouterr().err + result.reports["mlflow"]
    assert f"cannot log to http://me:***@127.0.0.1:{closed_port}" in shown
    assert "secret" not in shown
    assert "secret" not in (tmp_path / "run" / "mlflow.json").read_text()
