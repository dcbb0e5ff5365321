"""What MLflow has of a run is what metrics.jsonl, run.toml and run.json say."""

from __future__ import annotations

import json
import os
import random
import threading
import tomllib
from pathlib import Path

import numpy
import pytest
import sqlalchemy
import torch
from ptrain_mlflow.naming import name_for
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.cli.main import main
from plugin_trainer.errors import PtrainError


def numbers(run_folder):
    """Every number of metrics.jsonl by name, as (step, value)."""
    found = {}
    for line in map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            if name not in ("step", "epoch", "samples", "time"):
                found.setdefault(name, []).append((line["step"], float(value)))
    return found


def test_every_logged_number_is_there_once_at_its_step(fit, store, tmp_path):
    fit(ema={"decay": 0.5}, evaluate="3 steps")
    expected = numbers(tmp_path / "run")
    assert {"train/loss", "val/loss", "val_ema/loss", "learning_rate"} <= set(expected)
    assert set(store.run().data.metrics) == set(expected)
    for name, points in expected.items():
        assert store.history(name) == sorted(points), name
    assert [step for step, _ in store.history("train/loss")] == list(range(1, 13))


def test_what_two_lines_of_a_step_both_have_is_there_once(fit, store, logged):
    """The last step is logged with its evaluation, and once more with the test split."""
    rows = TensorDataset(torch.ones(4, 4), torch.zeros(4, dtype=torch.int64))
    fit(test=DataLoader(rows, batch_size=4))
    assert len(logged("learning_rate")) == 13
    assert len(logged("test/loss")) == 1
    assert store.history("learning_rate") == sorted(set(logged("learning_rate")))
    assert store.history("test/loss") == logged("test/loss")


def test_a_point_has_the_time_at_which_it_was_logged(fit, store, tmp_path):
    fit()
    lines = list(map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()))
    points = store.client.get_metric_history(store.run().info.run_id, "train/loss")
    assert {p.step: p.timestamp for p in points} == {
        line["step"]: round(1000 * line["time"]) for line in lines if "train/loss" in line
    }


def test_the_settings_are_parameters(fit, store, tmp_path):
    fit(optimizer={"learning_rate": 0.003, "groups": {"0.*": {"frozen": True}}})
    parameters = store.run().data.params
    assert parameters["optimizer.learning_rate"] == "0.003"
    assert parameters["length"] == "4 epochs"
    assert parameters[name_for('optimizer.groups."0.*".frozen')] == "true"
    assert parameters["callbacks"] == '["-progress_bar", "-tensorboard"]'
    leaves = (tmp_path / "run" / "run.toml").read_text().count(" = ")
    assert len(parameters) == leaves


def test_experiment_name_and_tags_are_as_asked(fit, store):
    chosen = {"experiment": "films", "run_name": "first", "tags": {"team": "search", "n": "1"}}
    fit(logger=chosen)
    (run,) = store.runs("films")
    assert run.info.run_name == "first"
    assert {"team": "search", "n": "1"}.items() <= run.data.tags.items()
    assert store.runs() == []


def test_left_alone_it_is_named_after_its_folder_and_says_where_it_came_from(fit, store, tmp_path):
    fit()
    run = store.run()
    assert run.info.run_name == "run"
    assert run.data.tags["ptrain.folder"] == str(tmp_path / "run")
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    started = json.loads((tmp_path / "run/run.json").read_text())["started"]
    assert started.startswith("20")
    assert run.info.start_time % 1000 == 0  # the time of run.json, not that of the first request
    assert run.info.end_time >= run.info.start_time


def test_environment_variables_name_store_and_experiment(fit, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from outside")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fit()
    assert len(store.runs("from outside")) == 1
    assert not (tmp_path / "elsewhere" / "mlflow.db").exists()


# ------------------------------------------------------------------------------------- files


def test_run_toml_and_the_run_json_of_an_ended_run_are_artifacts(fit, store, tmp_path):
    fit()
    run_id = store.run().info.run_id
    files = {file.path for file in store.client.list_artifacts(run_id)}
    assert files == {"run.toml", "run.json"}
    folder = store.client.download_artifacts(run_id, "", str(tmp_path))
    about = json.loads((tmp_path / "run/run.json").read_text())
    sent = json.loads((tmp_path / folder / "run.json").read_text())
    assert sent["status"] == "finished"
    assert {key: about[key] for key in sent} == sent
    assert tomllib.loads((tmp_path / folder / "run.toml").read_text())["length"] == "4 epochs"
    assert (tmp_path / "mlartifacts" / run_id).is_dir()


def test_what_callbacks_add_is_an_artifact(fit, store, tmp_path):
    class Adds:
        def ptrain_evaluation_end(self, run):
            run.log_artifact("tables/confusion.csv", "a,b")

    fit(callbacks=(Adds(),))
    run_id = store.run().info.run_id
    (file,) = store.client.list_artifacts(run_id, "artifacts/tables")
    downloaded = store.client.download_artifacts(run_id, file.path, str(tmp_path))
    assert Path(downloaded).read_text() == "a,b"


def test_the_best_checkpoint_comes_with_what_loading_it_needs(store, tmp_path):
    small = ["hidden_size=16", "num_blocks=2", "num_heads=2", "initial_depth=1.5"]
    arguments = ["run", "--plugin", "dactbert", "--plugin", "mlflow", "--out", "run"]
    arguments += ["--set", "data_settings.examples=64", "--set", "length=4 steps"]
    arguments += ["--set", "data_settings.validation_examples=50"]
    for setting in small:
        arguments += ["--set", f"model_settings.{setting}"]
    arguments += ["--set", 'callback_settings."mlflow/logger".best_checkpoint=true']
    assert main(arguments) == 0
    folder = tmp_path / "downloaded"
    folder.mkdir()
    store.client.download_artifacts(store.run().info.run_id, "", str(folder))
    one = plugin_trainer.load_run(str(tmp_path / "run"), checkpoint="best")
    other = plugin_trainer.load_run(str(folder), checkpoint="best")
    texts = ["the film is not good", "the plot is fine"]
    assert list(one.predict(texts)) == list(other.predict(texts))


# ------------------------------------------------------------------------- what it costs


@pytest.fixture
def statements():
    """Every statement that reaches a database, with the thread that sent it."""
    seen = []

    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append((statement, threading.get_ident()))

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    yield seen
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)


def test_metrics_are_sent_together_and_never_by_the_thread_that_trains(fit, store, statements):
    fit(length="100 steps", logger={"send_every_s": 3600})
    assert len(store.history("train/loss")) == 100
    inserts = [text for text, _ in statements if text.startswith("INSERT INTO metrics")]
    assert 0 < len(inserts) <= 3  # of 1000 numbers each at most
    here = threading.get_ident()
    fits = [thread for text, thread in statements if text.startswith(("INSERT", "UPDATE"))]
    assert here not in fits


def test_what_is_new_is_sent_while_the_run_goes_on(fit, store):
    class Wait:
        """At step 10, until the store has step 9."""

        def ptrain_step_end(self, run):
            if run.progress.step == 10:
                while not store.runs() or (9 not in dict(store.history("train/loss"))):
                    threading.Event().wait(0.05)
                assert store.run().info.status == "RUNNING"

    fit(callbacks=(Wait(),))


@pytest.mark.process
def test_workers_that_are_forked_while_the_thread_sends_do_their_work(fit, store, logged):
    fit(workers=2, length="12 epochs", logger={"send_every_s": 0.001})
    assert len(store.history("train/loss")) == 36
    assert store.history("train/loss") == logged("train/loss")


def test_training_is_the_same_to_the_bit_and_no_random_number_is_drawn(fit, store, tmp_path):
    class Draws:
        """What the streams give at each step."""

        def __init__(self):
            self.drawn = []

        def ptrain_step_end(self, run):
            self.drawn.append((random.random(), numpy.random.rand(), float(torch.rand(()))))

    one, other = Draws(), Draws()
    logged = fit(callbacks=(one,))
    plain = fit(callbacks=("-mlflow/logger", other), out="plain", callback_settings={})
    assert len(store.history("train/loss")) == 12
    assert not (tmp_path / "plain" / "mlflow.json").exists()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, logged.model.state_dict()[name]), name
    assert one.drawn == other.drawn


# ------------------------------------------------------------------------ mistakes in settings


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("carrier-pigeon://x", "unsupported URI 'carrier-pigeon://x'"),
        ("http:/host:5000", "'http:/host:5000' names no host"),
        ("mlruns", "filesystem tracking backend"),
    ],
)
def test_a_uri_that_is_none_stops_the_run_before_its_first_step(
    fit, tmp_path, capsys, uri, message
):
    with pytest.raises(PtrainError, match=message) as caught:
        fit(logger={"tracking_uri": uri})
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert '"status": "failed"' in (tmp_path / "run" / "run.json").read_text()
    # Left behind, they went away when the run was collected: in the midst of another one.
    assert [name for name in os.environ if name.startswith("MLFLOW_HTTP")] == []


def test_a_database_without_its_driver_names_the_package(fit):
    with pytest.raises(PtrainError, match=r"postgresql://me:\*\*\*@h/x needs the package psycopg"):
        fit(logger={"tracking_uri": "postgresql://me:secret@h/x"})


def test_an_experiment_that_was_deleted_is_a_mistake(fit, store):
    number = store.client.create_experiment("gone")
    store.client.delete_experiment(number)
    with pytest.raises(PtrainError, match="experiment 'gone' was deleted; restore it"):
        fit(logger={"experiment": "gone"})


def test_a_tag_that_mlflow_refuses_is_found_with_the_other_mistakes(fit):
    with pytest.raises(PtrainError, match="MLflow takes no tag called 'a#b'"):
        fit(logger={"tags": {"a#b": "x"}})
