"""System 004, a training engine with callbacks, a registry of models and reinforcement learning:
what it does for any model, and what went wrong there.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from plugin_trainer import PtrainError, StepOutcome
from plugin_trainer.callbacks.early_stopping import EarlyStopping
from plugin_trainer.callbacks.settings import EarlyStoppingSettings
from plugin_trainer.errors import TrainingFailed

# A model and its data as a plugin in one file: what a registry of models and data sources names.
PLUGIN = '''
    """Points on a line."""

    from dataclasses import dataclass

    from plugin_trainer import DataSpec, ModelSpec

    PTRAIN_API = 1
    HERE = __name__


    @dataclass(frozen=True)
    class NetSettings:
        width: int = 4


    @dataclass(frozen=True)
    class PointsSettings:
        count: int = 12


    def net(settings, data):
        from torch import nn

        return nn.Sequential(nn.Linear(data.inputs, settings.width), nn.Linear(settings.width, 2))


    class Points:
        inputs = 3

        def __init__(self, settings):
            import torch
            from torch.utils.data import TensorDataset

            features = torch.randn(settings.count, 3, generator=torch.Generator().manual_seed(0))
            self.rows = TensorDataset(features, (features[:, 0] > 0).long())

        def train(self):
            return self.rows

        def validation(self):
            return self.rows


    def ptrain_models():
        return [ModelSpec(name="net", target=f"{HERE}:net", settings=f"{HERE}:NetSettings")]


    def ptrain_data():
        target, settings = f"{HERE}:Points", f"{HERE}:PointsSettings"
        return [DataSpec(name="points", target=target, settings=settings)]
'''


@pytest.fixture
def line(installed):
    """The current folder, with ./line.py in it and a run file that names what it offers."""
    installed.write("line.py", PLUGIN)
    installed.write(
        "line.toml",
        """
        plugins    = ["./line.py"]
        model      = "line/net"
        data       = "line/points"
        length     = "4 epochs"
        batch_size = 4
        loss       = "CrossEntropyLoss"
        callbacks  = ["-progress_bar", "-tensorboard"]
        """,
    )
    return installed.cwd


def moments(diary, hook: str) -> list[int]:
    """The steps at which a hook was called."""
    return [int(call.split()[1]) for call in diary.calls if call.split()[0] == hook]


# ------------------------------------------------------------------------------- the behaviours


def test_model_and_data_are_built_by_their_names_and_settings(line, ptrain):
    """Feature: a model factory and a data manager."""
    done = ptrain("run", "line.toml", "--out", "run", "--set", "model_settings.width=7")
    assert done.code == 0, done.err
    shown = json.loads(ptrain("runs", "show", "run", "--json").out)
    assert shown["status"] == "finished" and shown["step"] == 12
    unknown = ptrain("run", "line.toml", "--set", "model=line/nett")
    assert unknown.code == 2 and "line/net" in unknown.err


def test_a_model_that_trains_itself_is_driven_by_a_step_of_its_own(fit, lines):
    """Feature: an epoch is the model's own `train`, whatever it does in there."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(8.0))

        def train_once(self) -> float:
            with torch.no_grad():
                self.value /= 2
            return self.value.item()

    class Drive:
        def ptrain_train_step(self, run, micro_batches):
            return StepOutcome(loss=torch.tensor(run.model.train_once()))

        def ptrain_forward(self, run, batch):
            return StepOutcome(loss=run.model.value.detach() * 10)

    result = fit(
        Own(), [0], [0], loss=None, callbacks=[Drive()], length="3 epochs", log="1 steps",
    )  # fmt: skip
    assert lines(result.folder, "train/loss") == [4.0, 2.0, 1.0]
    assert lines(result.folder, "val/loss") == [40.0, 20.0, 10.0]


def test_callbacks_see_the_run_its_epochs_and_its_batches_begin_and_end(fit, toy):
    """Feature: hooks at the begin and end of training, epochs and batches."""
    batches = []

    class Batches:
        def ptrain_move_batch(self, batch):
            batches.append(len(batch[0]))

    diary = toy.Diary()
    fit(callbacks=[diary, Batches()], length="2 epochs")
    assert diary.calls[0] == "run_start 0" and diary.calls[-1] == "run_end 6"
    assert moments(diary, "epoch_start") == [0, 3] and moments(diary, "epoch_end") == [3, 6]
    assert moments(diary, "step_end") == [1, 2, 3, 4, 5, 6] and batches == [4] * 6


def test_logging_and_checkpoints_are_there_without_asking(fit, lines):
    """Feature: default callbacks for logging and for checkpoints."""
    result = fit()
    assert lines(result.folder, "learning_rate") and lines(result.folder, "train/loss")
    assert [path.name for path in sorted(result.folder.glob("checkpoints/step-*"))] == [
        "step-00000003",
        "step-00000006",
    ]


def test_a_checkpoint_is_a_folder_of_weights_settings_and_progress(fit):
    """Feature: a folder for each saved epoch, with model, configuration and training state."""
    result = fit()
    saved = result.folder / "checkpoints/step-00000003"
    state = json.loads((saved / "state.json").read_text())["state"]
    place = {"step": 3, "epoch": 0, "batch": 3, "samples": 12, "completed_epochs": 1}
    assert state["progress"] == place
    assert (saved / "model.safetensors").is_file() and (result.folder / "run.toml").is_file()


def test_a_resumed_run_goes_on_after_its_last_epoch_with_its_history(line, ptrain, lines):
    """Feature: resume_from_checkpoint, with the history so far."""
    first = ptrain("run", "line.toml", "--out", "run", "--set", "length=2 epochs")
    assert first.code == 0, first.err
    longer = ("--set", "length=4 epochs", "--allow", "length")
    again = ptrain("run", "line.toml", "--out", "run", "--resume", "auto", *longer)
    assert again.code == 0, again.err
    assert [entry["step"] for entry in lines(line / "run") if "val/loss" in entry] == [3, 6, 9, 12]


def test_early_stopping_gives_the_best_weights_back(fit, toy, weights):
    """Feature: monitor, mode, min_delta, patience and restore_best_weights."""
    stopping = {"patience": 2, "min_delta": 1e-4, "mode": "min", "restore_best": True}
    result = fit(
        toy.Scripted(1.0, 0.5, 0.49999, 0.7, 0.1), validation=toy.loader(4), loss=None,
        length="9 epochs", keep="all", callbacks=["early_stopping"],
        callback_settings={"early_stopping": stopping},
    )  # fmt: skip
    assert (result.status, result.step) == ("stopped early", 12)
    best, last = (weights(result.folder, name)["weight"] for name in ("best", "latest"))
    assert result.model.weight == best != last


def test_only_the_best_is_kept_where_that_is_asked_for(fit, toy):
    """Feature: save_best_only."""
    result = fit(
        toy.Scripted(3.0, 1.0, 2.0, 2.0), validation=toy.loader(4), loss=None, length="4 epochs",
        save="never", keep=1,
    )  # fmt: skip
    found = sorted(path.name for path in result.folder.glob("checkpoints/step-*"))
    assert found == ["step-00000006", "step-00000012"]  # the best, and the end of the run


def test_the_result_has_the_history_and_the_last_metrics(fit, toy, lines):
    """Feature: history, final metrics, epochs trained."""
    result = fit(validation=toy.loader(4), length="3 epochs", log="1 epoch")
    train, val = (lines(result.folder, f"{split}/loss") for split in ("train", "val"))
    assert len(train) == len(val) == 3
    assert result.metrics["val/loss"] == val[-1]
    assert (result.status, result.step) == ("finished", 9)


def test_a_run_that_failed_says_so_where_it_is_looked_up(fit, ptrain, tmp_path):
    """Feature: success or an error, as a value."""

    class Broken:
        def ptrain_step_end(self):
            raise ValueError("broken")

    with pytest.raises(TrainingFailed):
        fit(callbacks=[Broken()])
    shown = json.loads(ptrain("runs", "show", str(tmp_path / "run"), "--json").out)
    assert shown["status"] == "failed" and "ptrain_step_end at step 1" in shown["reason"]


def test_epochs_batches_order_and_log_are_settings(line, ptrain, lines):
    """Feature: epochs, batch_size, shuffle, log_frequency, verbose."""
    sets = ("length=2 epochs", "batch_size=6", "log=1 steps", "callbacks=['progress_bar']")
    shown = "callback_settings.progress_bar.mode=lines"
    done = ptrain(
        "run", "line.toml", "--out", "run", *(w for s in (*sets, shown) for w in ("--set", s))
    )
    assert done.code == 0, done.err
    assert [entry["samples"] for entry in lines(line / "run")] == [6, 12, 18, 24]
    assert "step 4/4" in done.err


def test_a_trained_model_is_registered_under_a_name_with_a_version_tags_and_metrics(line, ptrain):
    """Feature: register_model into a registry and an artifact store."""
    assert ptrain("run", "line.toml", "--out", "run").code == 0
    for _ in range(2):
        done = ptrain("models", "register", "run", "--name", "lines", "--tag", "team=search")
        assert done.code == 0, done.err
    [model] = json.loads(ptrain("models", "list", "--json").out)
    assert model["name"] == "lines" and [v["version"] for v in model["versions"]] == [1, 2]
    shown = json.loads(ptrain("models", "show", "lines", "--json").out)
    assert shown["tags"] == {"team": "search"} and shown["metrics"]["val/loss"] > 0
    assert ptrain("models", "alias", "lines:1", "production").code == 0
    assert json.loads(ptrain("models", "show", "lines@production", "--json").out)["version"] == 1


def test_a_registered_model_is_whole_and_can_be_used_again(line, ptrain):
    """Feature: a model is loaded back from the store."""
    assert ptrain("run", "line.toml", "--out", "run").code == 0
    assert ptrain("models", "register", "run", "--name", "lines").code == 0
    verified = ptrain("models", "verify")
    assert verified.code == 0 and "1 version whole" in verified.out
    assert ptrain("models", "export", "lines", "copy").code == 0
    one, other = (ptrain("evaluate", folder, "--json") for folder in ("run", "copy"))
    assert one.code == other.code == 0, other.err
    assert json.loads(one.out)["val/loss"] == json.loads(other.out)["val/loss"]


def test_the_best_model_of_a_run_is_registered_when_it_ends(line, ptrain):
    """Feature: the final model goes to the registry with its metrics."""
    done = ptrain(
        "run", "line.toml", "--out", "run", "--set", "callbacks=['register_best']",
        "--set", "callback_settings.register_best.name=lines",
    )  # fmt: skip
    assert done.code == 0, done.err
    shown = json.loads(ptrain("models", "show", "lines@best", "--json").out)
    best = json.loads((line / "run/run.json").read_text())["best"]["raw"]
    assert shown["step"] == best["step"] and shown["metrics"]["val/loss"] == best["value"]


@pytest.fixture
def agent(typed, tmp_path):
    """`ptrain run --plugin reinforcement`, a few steps of a small agent on CartPole."""

    def run(out, *options, **sets):
        values = {
            "length": "40 steps", "evaluate": "20 steps", "save": "20 steps", "log": "10 steps",
            "schedule.name": "constant", "model_settings.hidden_sizes": "[8]",
            "data_settings.first_acts": 50, "data_settings.batch_size": 8,
            "data_settings.epsilon_steps": 40, "data_settings.evaluation_episodes": 2,
            "data_settings.test_episodes": 0, "data_settings.copies": 1,
            "data_settings.max_episode_steps": 30, "callbacks": "[\"-tensorboard\"]",
            **{key.replace("__", "."): value for key, value in sets.items()},
        }  # fmt: skip
        given = [word for item in values.items() for word in ("--set", "{}={}".format(*item))]
        typed("run", "--plugin", "reinforcement", "--out", tmp_path / out, *options, *given)
        return tmp_path / out

    return run


def test_an_agent_acts_learns_and_is_scored_by_its_rewards(agent, lines):
    """Feature: deep Q-learning with exploration, a replay buffer and a target network."""
    run = agent("run")
    rewards = lines(run, "val/episode_reward")
    assert len(rewards) == 2 and all(1 <= reward <= 30 for reward in rewards)
    shares = lines(run, "train/epsilon")
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


# ------------------------------------------------------------------------------------ its faults


def test_bug_01_early_stopping_really_stops(fit, toy):
    result = fit(
        toy.Scripted(*[1.0] * 10), validation=toy.loader(4), loss=None, length="10 epochs",
        callbacks=["early_stopping"], callback_settings={"early_stopping": {"patience": 2}},
    )  # fmt: skip
    assert (result.status, result.step) == ("stopped early", 3 * 3)


def test_bug_02_the_best_weights_are_a_copy_and_come_back_once_at_the_end(fit, toy):
    history = []

    class Follow:
        def ptrain_step_end(self, run):
            history.append(run.model.weight.item())

    result = fit(
        toy.Scripted(1.0, 2.0, 2.0), validation=toy.loader(4), loss=None, length="9 steps",
        evaluate="1 steps", callbacks=["early_stopping", Follow()],
        callback_settings={"early_stopping": {"patience": 2, "restore_best": True}},
    )  # fmt: skip
    assert len(set(history)) == 3, "training went on from its own weights"
    assert result.model.weight.item() == history[0]


def test_bug_03_a_run_resumes_from_the_checkpoints_it_wrote_by_itself(line, ptrain):
    """With nothing but the run's folder."""
    assert ptrain("run", "line.toml", "--out", "run", "--set", "length=2 epochs").code == 0
    again = ptrain("run", "--resume", "run", "--set", "length=3 epochs", "--allow", "length")
    assert again.code == 0, again.err
    assert "going on from run/checkpoints/step-00000006" in again.err
    assert "finished: 3 epochs are done" in again.out


def test_bug_04_an_error_comes_with_its_kind_its_place_and_its_cause(fit):
    class Broken:
        def ptrain_epoch_end(self):
            raise KeyError("loss")

    with pytest.raises(TrainingFailed) as caught:
        fit(callbacks=[Broken()])
    told = str(caught.value)
    assert "Broken" in told and "KeyError" in told and "ptrain_epoch_end" in told
    assert re.search(r"test_system_004\.py:\d+", told)
    assert isinstance(caught.value.__cause__, KeyError)


def test_bug_05_resuming_a_finished_run_reports_it(fit, line, ptrain):
    first = fit()
    again = fit(resume="auto")
    assert (again.status, again.step) == (first.status, first.step)
    assert ptrain("run", "line.toml", "--out", "run").code == 0
    done = ptrain("run", "line.toml", "--out", "run", "--resume", "auto")
    assert done.code == 0 and "is finished already" in done.out


def test_bug_06_a_checkpoint_that_is_missing_is_named(line, ptrain):
    gone = ptrain("run", "--resume", "no/such/run")
    assert gone.code == 2 and "no/such/run" in gone.err
    assert ptrain("run", "line.toml", "--out", "run").code == 0
    scored = ptrain("evaluate", "run", "--checkpoint", "step-77")
    assert scored.code == 2 and "step-00000077" in scored.err and "step-00000012" in scored.err


def test_bug_07_step_hooks_fire_at_every_step(fit, toy):
    diary = toy.Diary()
    fit(callbacks=[diary], length="7 steps")
    assert moments(diary, "step_end") == [1, 2, 3, 4, 5, 6, 7]


def test_bug_08_a_metric_that_is_missing_is_an_error_and_the_best_alone_is_saved(fit, toy):
    with pytest.raises(PtrainError, match=r"(?s)val/accuraccy.*val/loss"):
        fit(validation=toy.loader(4), best={"watch": "val/accuraccy"})
    with pytest.raises(PtrainError, match=r"(?s)val/f1.*val/loss"):
        fit(
            validation=toy.loader(4), callbacks=["early_stopping"], out="other",
            callback_settings={"early_stopping": {"watch": "val/f1"}},
        )  # fmt: skip
    result = fit(validation=toy.loader(4), save="never", out="best")
    assert (result.folder / "checkpoints" / result.best["raw"].checkpoint).is_dir()


def test_bug_09_metrics_of_numpy_and_torch_are_written(fit, toy, lines):
    class Score:
        def ptrain_evaluation_end(self, metrics):
            metrics["val/numpy"] = np.float32(0.5)
            metrics["val/torch"] = torch.tensor(2.5)

        def ptrain_log(self, metrics):
            metrics["count"] = np.int64(3)

    result = fit(validation=toy.loader(4), callbacks=[Score()], length="1 epoch")
    [line] = [line for line in lines(result.folder) if "val/loss" in line]
    assert (line["val/numpy"], line["val/torch"], line["count"]) == (0.5, 2.5, 3)
    assert json.loads((result.folder / "run.json").read_text())["metrics"]["val/numpy"] == 0.5


def test_bug_10_a_missing_loss_is_an_error_and_not_zero(fit):
    class Lossless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, features):
            return {"score": features * self.weight}

    with pytest.raises(PtrainError, match="loss"):
        fit(Lossless(), [{"features": torch.ones(2)}], loss=None)


def test_bug_11_runs_of_the_same_second_have_folders_of_their_own(fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {fit(out=None, length="1 steps").folder.resolve() for _ in range(3)}
    assert len(folders) == 3


def test_bug_12_a_checkpoint_holds_the_optimizer_and_the_random_streams_and_no_pickle(fit, weights):
    folder = fit().folder
    moments_of = weights(folder, file="optimizer")
    assert {"weight/exp_avg", "weight/exp_avg_sq", "bias/exp_avg"} <= moments_of.keys()
    state = json.loads((folder / "checkpoints/step-00000006/state.json").read_text())["state"]
    assert {"python", "numpy", "torch"} <= state["rng"].keys()
    kinds = {path.suffix for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}


def test_bug_12_a_resumed_agent_has_its_replay_buffer_target_network_and_exploration(
    agent, weights
):
    whole = weights(agent("whole"))
    agent("cut", length="20 steps")
    cut = weights(agent("cut", "--resume", "auto", "--allow", "length"))
    assert any("target" in name for name in whole)
    assert all(tensor.equal(cut[name]) for name, tensor in whole.items())


def test_bug_13_validation_is_watched_lines_are_printed_and_a_list_of_callbacks_stays_as_it_is(
    fit, toy, capsys
):
    given = ["progress_bar", toy.Diary()]
    before = list(given)
    result = fit(
        validation=toy.loader(4), callbacks=given, log="2 steps",
        callback_settings={"progress_bar": {"mode": "lines"}},
    )  # fmt: skip
    assert given == before
    assert result.best["raw"].watch == "val/loss"
    assert "step 6/6" in capsys.readouterr().err


def test_bug_14_a_second_run_stops_by_its_own_best(fit, toy):
    def stopped(out, *losses):
        return fit(
            toy.Scripted(*losses), validation=toy.loader(4), loss=None, length="9 epochs", out=out,
            callbacks=["early_stopping"], callback_settings={"early_stopping": {"patience": 1}},
        )  # fmt: skip

    assert stopped("first", 0.1, 0.2).step == 6
    assert stopped("second", 9.0, 8.0, 7.0, 7.5).step == 12


def test_bug_14_a_callback_that_stopped_one_run_begins_anew_in_the_next(fit, toy):
    stopping = EarlyStopping(EarlyStoppingSettings(patience=1))

    def stopped(out, *losses):
        return fit(
            toy.Scripted(*losses), validation=toy.loader(4), loss=None, length="9 epochs", out=out,
            callbacks=[stopping],
        )  # fmt: skip

    assert stopped("first", 0.1, 0.2).step == 6
    assert stopped("second", 9.0, 8.0, 7.0, 7.5).step == 12


def test_bug_15_exploration_falls_over_the_whole_run_and_not_anew_in_each_epoch(agent, lines):
    run = agent("run", data_settings__batches_per_epoch=10)
    shares = lines(run, "train/epsilon")
    assert len(shares) == 4 and shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.1


def test_bug_15_batch_size_and_learning_rate_reach_the_training(line, ptrain, lines, weights):
    shapes = {}
    for size, rate in ((3, 1e-12), (6, 1e-12), (6, 0.5)):
        out = f"run-{size}-{rate}"
        sets = (f"batch_size={size}", f"optimizer.learning_rate={rate}", "log=1 steps")
        done = ptrain(
            "run", "line.toml", "--out", out, *(word for one in sets for word in ("--set", one))
        )
        assert done.code == 0, done.err
        shapes[size, rate] = (len(lines(line / out, "train/loss")), weights(line / out)["0.weight"])
    assert [steps for steps, _ in shapes.values()] == [16, 8, 8]
    slow, same, fast = (tensor for _, tensor in shapes.values())
    torch.testing.assert_close(slow, same)
    assert not torch.allclose(same, fast, atol=1e-2)
