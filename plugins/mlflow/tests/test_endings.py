"""However a run ends, its MLflow run is closed to match; one of somebody else's is left open."""

from __future__ import annotations

import math
import os
import signal

import mlflow
import pytest

from plugin_trainer.errors import PtrainError


def send_self(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise RuntimeError("the disk of dreams is full")


def test_a_run_that_finishes_is_finished(fit, store):
    fit()
    run = store.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["ptrain.status"] == "finished"
    assert run.data.tags["ptrain.reason"] == "4 epochs are done"


def test_a_run_that_stops_early_is_finished(fit, store, at):
    class Enough:
        def ptrain_evaluation_end(self, run):
            run.request_stop("enough")

    fit(callbacks=(Enough(),))
    run = store.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["ptrain.reason"] == "enough"
    assert store.history("train/loss")[-1][0] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_interrupted_is_killed(fit, store, at, logged, number):
    result = fit(callbacks=(at(5, lambda: send_self(number)),))
    assert result.status == "interrupted"
    assert store.run().info.status == "KILLED"
    assert store.run().data.tags["ptrain.status"] == "interrupted"
    assert [step for step, _ in store.history("train/loss")] == [1, 2, 3, 4, 5]
    assert store.history("train/loss") == logged("train/loss")


def test_a_second_ctrl_c_is_killed_too(fit, store, at):
    def twice():
        send_self(signal.SIGINT)
        send_self(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=(at(5, twice),))
    assert store.run().info.status == "KILLED"
    assert [step for step, _ in store.history("train/loss")] == [1, 2, 3, 4]


def test_a_run_that_fails_is_failed_and_says_why(fit, store, at):
    with pytest.raises(PtrainError):
        fit(callbacks=(at(5, fail),))
    run = store.run()
    assert run.info.status == "FAILED"
    assert run.data.tags["ptrain.status"] == "failed"
    assert run.data.tags["ptrain.reason"] == "RuntimeError: the disk of dreams is full"
    assert [step for step, _ in store.history("train/loss")] == [1, 2, 3, 4]
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} == {
        "run.toml",
        "run.json",
    }


def test_a_run_that_fails_while_it_ends_is_failed(fit, store):
    class FailsLast:
        """After the logger, which has closed its run by then."""

        def ptrain_run_end(self):
            fail()

    from ptrain_mlflow import hooks

    from plugin_trainer import CallbackSpec

    order = hooks.ptrain_callbacks()[0]
    assert isinstance(order, CallbackSpec)
    with pytest.raises(PtrainError):
        fit(callbacks=(FailsLast(),))
    assert store.run().info.status == "FAILED"


def test_a_loss_that_is_not_finite_is_in_the_log_of_the_failed_run(fit, store):
    with pytest.raises(PtrainError):
        fit(optimizer={"learning_rate": 1e38})
    assert store.run().info.status == "FAILED"
    assert math.isnan(store.run().data.metrics["train/loss"])


# ------------------------------------------------------------------ a run that is active already


@pytest.fixture
def active(store):
    """A run that somebody has begun in this process."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(store.uri)
    number = store.client.create_experiment("theirs", artifact_location=str(store.path.parent))
    with mlflow.start_run(experiment_id=number, run_name="outer") as run:
        yield run
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_an_active_run_is_logged_to_and_left_open(fit, store, active, logged):
    fit()
    (run,) = store.runs("theirs")
    assert run.info.run_id == active.info.run_id
    assert store.runs() == [] and store.client.get_experiment_by_name("ptrain") is None
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "outer"
    assert mlflow.active_run().info.run_id == active.info.run_id
    assert store.history("train/loss", run) == logged("train/loss")
    assert run.data.params["length"] == "4 epochs"


def test_an_active_run_is_left_open_by_a_failure_too(fit, store, active, at):
    with pytest.raises(PtrainError):
        fit(callbacks=(at(5, fail),))
    (run,) = store.runs("theirs")
    assert run.info.status == "RUNNING"
    assert run.data.tags["ptrain.status"] == "failed"


def test_two_runs_in_one_active_run_do_not_mix(fit, store, active, capsys, tmp_path):
    fit(out="one")
    fit(out="two")
    assert f"holds {tmp_path / 'one'} already: this run has its own" in capsys.readouterr().err
    (theirs,) = store.runs("theirs")
    assert len(store.history("train/loss", theirs)) == 12
    own = store.run()
    assert own.info.run_name == "two"
    assert own.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in own.data.tags


def test_a_run_nests_in_the_active_one_where_that_is_asked_for(fit, store, active):
    fit(logger={"active_run": "nest"})
    own = store.run()
    assert own.data.tags["mlflow.parentRunId"] == active.info.run_id
    assert own.info.status == "FINISHED"
    (theirs,) = store.runs("theirs")
    assert theirs.data.metrics == {} and theirs.info.status == "RUNNING"


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another store", "asked for"])
def test_an_active_run_can_be_ignored(fit, store, active, elsewhere, tmp_path, new_database):
    other = tmp_path / "other.db"
    other.write_bytes(new_database.read_bytes())
    own = {"tracking_uri": f"sqlite:///{other}"} if elsewhere else {"active_run": "ignore"}
    fit(logger=own)
    (theirs,) = store.runs("theirs")
    assert theirs.data.metrics == {} and theirs.data.params == {}
    read = type(store)(other) if elsewhere else store
    assert read.run().info.status == "FINISHED"
