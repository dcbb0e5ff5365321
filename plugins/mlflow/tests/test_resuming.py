"""A resumed run goes on in its own MLflow run, in which every step stands once."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest

from plugin_trainer.errors import PtrainError


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_when_sent(store, step):
    """A callback that sends a SIGKILL once the store has a step."""

    class Killer:
        def ptrain_step_end(self, run):
            if run.progress.step == step + 1:
                while not store.runs() or step not in dict(store.history("train/loss")):
                    pass
                kill()

    return Killer()


STEPS = list(range(1, 13))
SAVING = {"save": "3 steps"}


def steps(points):
    return [step for step, _ in points]


@pytest.mark.process
def test_after_a_sigkill_every_step_stands_once_as_in_a_run_that_never_stopped(
    fit, forked, store, logged
):
    assert forked(callbacks=(killed_when_sent(store, 5),), **SAVING) == -signal.SIGKILL
    killed = store.run()
    assert killed.info.status == "RUNNING"
    assert steps(store.history("train/loss"))[:5] == [1, 2, 3, 4, 5]  # the checkpoint is of step 3
    fit(resume="auto", **SAVING)
    resumed = store.run()
    fit(out="twin", logger={"experiment": "twin"}, **SAVING)
    (twin,) = store.runs("twin")
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"
    for name in ("train/loss", "val/loss", "learning_rate"):
        assert store.history(name, resumed) == store.history(name, twin), name
    assert store.history("train/loss", resumed) == logged("train/loss")
    assert steps(store.history("seconds/data", resumed)) == STEPS
    assert "ptrain.differing" not in resumed.data.tags
    assert resumed.data.tags["ptrain.resumed"].startswith("from step 3; steps 4 to 5 stand as")


@pytest.mark.process
def test_a_run_killed_before_its_first_checkpoint_begins_again_in_the_same_run(fit, forked, store):
    assert forked(callbacks=(killed_when_sent(store, 2),), **SAVING) == -signal.SIGKILL
    before = store.run().info.run_id
    fit(resume="auto", **SAVING)
    assert store.run().info.run_id == before
    assert steps(store.history("train/loss")) == STEPS


def test_after_ctrl_c_it_goes_on(fit, store, at, logged):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    assert store.run().info.status == "KILLED"

    class Look:
        def ptrain_step_end(self, run):
            if run.progress.step == 7:
                assert store.run().info.status == "RUNNING"

    fit(callbacks=(Look(),), resume="auto")
    assert store.run().info.status == "FINISHED"
    assert store.history("train/loss") == logged("train/loss")
    assert steps(store.history("train/loss")) == STEPS
    assert store.run().data.tags["ptrain.resumed"] == "from step 5"


def test_a_run_that_is_made_longer_goes_on(fit, store):
    fit()
    fit(resume="auto", length="5 epochs", allow=["length"])
    run = store.run()
    assert steps(store.history("train/loss")) == [*STEPS, 13, 14, 15]
    assert run.data.params["length"] == "4 epochs"  # MLflow keeps what it was first told
    assert run.data.tags["ptrain.changed"] == "from step 12: length: 4 epochs -> 5 epochs"


@pytest.mark.process
def test_what_a_changed_setting_contradicts_is_said(fit, forked, store, logged, capsys):
    assert forked(callbacks=(killed_when_sent(store, 5),), **SAVING) == -signal.SIGKILL
    before = dict(store.history("train/loss"))
    capsys.readouterr()
    result = fit(
        resume="auto",
        allow=["optimizer.learning_rate"],
        optimizer={"learning_rate": 0.5},
        **SAVING,
    )
    run = store.run()
    now = dict(store.history("train/loss"))
    assert steps(store.history("train/loss")) == STEPS
    assert now[5] == before[5] != dict(logged("train/loss"))[5]
    assert {step: now[step] for step in STEPS[5:]} == dict(logged("train/loss")[5:])
    there, here = f"{before[5]:.6g} there", f"{dict(logged('train/loss'))[5]:.6g} here"
    assert "optimizer.learning_rate: 0.001 -> 0.5" in run.data.tags["ptrain.changed"]
    assert "numbers of this run's log, first" in run.data.tags["ptrain.differing"]
    assert f"train/loss at step 5: {there}, {here}" in result.reports["mlflow"]
    assert "going on from step 3; steps 4 to 5 stand as logged before" in capsys.readouterr().err


@pytest.mark.process
def test_told_to_wait_for_checkpoints_it_sends_nothing_that_a_resume_could_contradict(
    fit, forked, store, logged
):
    class SlowKiller:
        """At step 8, long after the checkpoint of step 6 has let its lines be sent."""

        def ptrain_step_end(self, run):
            if run.progress.step == 8:
                while not store.runs() or 6 not in dict(store.history("train/loss")):
                    pass
                kill()

    saved = {"logger": {"send": "saved", "send_every_s": 0.02}, **SAVING}
    assert forked(callbacks=(SlowKiller(),), **saved) == -signal.SIGKILL
    assert steps(store.history("train/loss")) == [1, 2, 3, 4, 5, 6]
    fit(resume="auto", **saved)
    assert store.history("train/loss") == logged("train/loss")
    assert store.history("seconds/data") == logged("seconds/data")
    assert store.run().data.tags["ptrain.resumed"] == "from step 6"


def test_a_callback_added_when_resuming_sends_what_was_logged_before(fit, store, at, logged):
    ctrl_c = at(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    fit(callbacks=("-mlflow/logger", ctrl_c), callback_settings={})
    assert store.runs() == []
    fit(resume="auto", allow=["callbacks", "callback_settings"])
    assert store.history("train/loss") == logged("train/loss")
    assert steps(store.history("train/loss")) == STEPS


def test_a_number_that_failed_the_run_does_not_hide_the_one_of_a_later_try(fit, store, logged):
    class Spoil:
        """Makes the batch of step 8 NaN."""

        def ptrain_move_batch(self, run, batch):
            if run.progress.step == 7 and run.model.training:
                return [batch[0] * math.nan, batch[1]]

    with pytest.raises(PtrainError):
        fit(callbacks=(Spoil(),), **SAVING)
    assert steps(logged("train/loss")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert math.isnan(dict(store.history("train/loss"))[8])
    fit(resume="auto", **SAVING)
    assert store.run().info.status == "FINISHED"
    values = [value for step, value in store.history("train/loss") if step == 8]
    assert dict(logged("train/loss"))[8] in values
    assert [value for value in values if not math.isnan(value)] == [dict(logged("train/loss"))[8]]
    assert steps(store.history("learning_rate")) == STEPS


# --------------------------------------------------------------- when the MLflow run is not there


def test_an_mlflow_run_that_was_deleted_is_replaced_by_one_with_the_whole_log(
    fit, store, at, logged, capsys
):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    gone = store.run().info.run_id
    store.client.delete_run(gone)
    fit(resume="auto")
    assert store.run().info.run_id != gone
    assert store.history("train/loss") == logged("train/loss")
    assert f"the MLflow run {gone} was deleted" in capsys.readouterr().err


def test_a_copy_of_a_run_folder_has_its_own_and_a_moved_one_goes_on(fit, store, at, tmp_path):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    first = store.run().info.run_id
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fit(out="copy", resume="auto")
    (original, copy) = sorted(store.runs(), key=lambda run: run.info.run_id != first)
    assert steps(store.history("train/loss", original)) == [1, 2, 3, 4, 5]
    assert steps(store.history("train/loss", copy)) == STEPS
    (tmp_path / "run").rename(tmp_path / "moved")
    fit(out="moved", resume="auto")
    assert len(store.runs()) == 2
    assert steps(store.history("train/loss", original)) == STEPS


def test_a_run_that_was_made_although_nobody_heard_of_it_is_found_again(fit, store, at, tmp_path):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    path = tmp_path / "run" / "mlflow.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "run_id": ""}))  # as if killed before the answer came
    fit(resume="auto")
    assert store.run().info.run_id == record["run_id"]
    assert steps(store.history("train/loss")) == STEPS


def test_another_store_gets_the_whole_log(fit, store, at, logged, tmp_path, new_database, capsys):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    other = type(store)(tmp_path / "other.db")
    other.path.write_bytes(new_database.read_bytes())
    fit(
        resume="auto",
        logger={"tracking_uri": other.uri},
        allow=["callback_settings"],
    )
    assert other.history("train/loss") == logged("train/loss")
    assert "deleted" not in capsys.readouterr().err
    assert steps(store.history("train/loss")) == [1, 2, 3, 4, 5]


def test_a_run_resumed_from_another_folder_finds_its_store(fit, store, at, tmp_path, monkeypatch):
    fit(callbacks=(at(5, lambda: os.kill(os.getpid(), signal.SIGINT)),))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fit(resume="auto")
    assert not (tmp_path / "elsewhere" / "mlflow.db").exists()
    assert steps(store.history("train/loss")) == STEPS
