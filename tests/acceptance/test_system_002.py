"""System 002, a runner by steps or by epochs: its cadences, checkpoints, schedules and events, and
what went wrong there.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from plugin_trainer import StepOutcome
from plugin_trainer.errors import (
    NonFiniteError,
    PtrainError,
    ResumeError,
    SettingsError,
    TrainingFailed,
)


class Numbered(Dataset):
    """Twelve samples that tell when they are loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.loaded.append(index)
        return {"number": torch.tensor(index), "features": torch.full((2,), float(index))}


class Reader(nn.Module):
    """Keeps the numbers of the samples it has trained on, in a buffer of its checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.register_buffer("seen", torch.full((40,), -1))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, features, number):
        if self.training:
            self.seen[self.count : self.count + len(number)] = number
            self.count += len(number)
        return {"loss": (self.layer(features) * torch.rand(())).square().mean() / 100}


class Rates:
    """A callback that notes the learning rate each step is made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def ptrain_train_step(self, run):
        self.seen.append(run.optimizer.param_groups[0]["lr"])  # and leaves the step to the next


def evaluated(lines, folder) -> list[int]:
    return [line["step"] for line in lines(folder) if "val/loss" in line]


def saved(folder) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("checkpoints/step-*"))


# ------------------------------------------------------------------ lengths, cadences, boundaries


@pytest.mark.parametrize(("length", "steps"), [("3 epochs", 9), ("7 steps", 7)])
def test_a_run_is_as_long_as_its_epochs_or_its_steps(fit, length, steps):
    """Feature: run modes by epoch and by step."""
    assert fit(length=length).step == steps


@pytest.mark.parametrize(
    ("evaluate", "steps"),
    [
        ("1 epoch", [3, 6, 9, 12]),
        ("2 epochs", [6, 12]),
        ("0.5 epoch", [2, 3, 5, 6, 8, 9, 11, 12]),
        ("5 steps", [5, 10, 12]),
        ("never", [12]),
    ],
)
def test_evaluations_fall_due_by_epochs_parts_of_epochs_or_steps(fit, toy, lines, evaluate, steps):
    """Feature: eval_interval."""
    result = fit(validation=toy.loader(4), length="4 epochs", evaluate=evaluate)
    assert evaluated(lines, result.folder) == steps


@pytest.mark.parametrize(
    ("save", "keep", "steps"),
    [
        ("2 steps", "all", [2, 4, 6, 7]),
        ("2 steps", 1, [7]),
        ("1 epoch", "all", [3, 6, 7]),
        ("never", "all", [7]),
    ],
)
def test_regular_checkpoints_fall_due_and_stay_as_told(fit, save, keep, steps):
    """Feature: save_interval, and how many of them are kept."""
    assert saved(fit(length="7 steps", save=save, keep=keep).folder) == steps


def test_a_boundary_evaluates_logs_keeps_the_best_and_saves_in_this_order(fit, toy):
    """Feature: the order of what is due at one step."""
    diary = toy.Diary()
    fit(validation=toy.loader(4), length="1 epoch", callbacks=[diary], log="3 steps")
    assert diary.calls[diary.calls.index("step_end 3") + 1 :] == [
        "evaluation_batch_end 3",
        "evaluation_end 3",
        "log 3",
        "epoch_end 3",
        "checkpoint_save 3",
        "checkpoint_committed 3",
        "run_end 3",
    ]


def test_steps_are_optimizer_steps_whatever_is_accumulated(fit, toy, lines):
    """Feature: a global step that counts completed optimizer steps."""
    result = fit(
        train=toy.loader(16), validation=toy.loader(4), accumulate=2, length="2 epochs",
        evaluate="3 steps",
    )  # fmt: skip
    assert (result.step, result.samples) == (4, 32)
    assert evaluated(lines, result.folder) == [3, 4]


def test_accumulated_micro_batches_make_the_step_of_the_big_batch(fit, toy, weights):
    """Feature: gradient accumulation."""
    settings = {"length": "3 steps", "optimizer": {"name": "SGD", "learning_rate": 0.1}}
    big = fit(train=toy.loader(12, batch_size=12), out="big", **settings)
    small = fit(train=toy.loader(12, batch_size=5), accumulate=3, out="small", **settings)
    torch.testing.assert_close(weights(big.folder), weights(small.folder))


def test_gradients_are_clipped_where_that_is_asked_for(fit, toy, lines):
    """Feature: clip_grad; none by default."""
    plain = {"name": "SGD", "learning_rate": 1.0, "weight_decay": 0.0}
    moved = {}
    for limit in (0.0, 0.01):
        model = toy.net()
        settings = {**plain, "max_grad_norm": limit}
        fit(model, out=str(limit), length="1 steps", optimizer=settings)
        moved[limit] = torch.linalg.vector_norm(model.weight - toy.net().weight).item()
    assert moved[0.01] < 0.01001 < moved[0.0]


# ----------------------------------------------------------------------- what a task brings along


class Task:
    """A task's own loss, with its count, and metrics of a batch, in place of the default."""

    def ptrain_forward(self, run, batch):
        features, labels = batch
        logits = run.model(features)
        errors = nn.functional.cross_entropy(logits, labels, reduction="none")
        return StepOutcome(
            loss=errors.mean(),
            count=len(labels),
            metrics={"worst": errors.max()},
            outputs={"logits": logits},
        )


def test_a_task_computes_its_own_loss_count_and_metrics(fit, toy, lines):
    """Feature: batch_forward, batch_loss and batch_metric of a task."""
    result = fit(validation=toy.loader(4), callbacks=[Task()], loss=None, log="3 steps")
    assert result.metrics.keys() >= {"val/loss", "val/worst"}
    assert len(lines(result.folder, "train/worst")) == 2


def test_a_metric_of_a_whole_evaluation_sees_all_of_it(fit, toy):
    """Feature: epoch_metric over what was cached of each batch."""
    area = MulticlassAUROC(2)
    result = fit(
        validation=toy.loader(20, shuffle=False), metrics={"auroc": area}, length="1 steps"
    )
    features, labels = toy.rows(20).tensors
    whole = MulticlassAUROC(2)(result.model(features), labels)
    assert result.metrics["val/auroc"] == pytest.approx(float(whole))


def test_a_task_keeps_a_state_of_its_own_in_checkpoints(fit, toy):
    """Feature: state_dict and load_state_dict of a task."""

    class Curriculum(Task):
        stage = 0

        def ptrain_step_end(self):
            self.stage += 1

        def ptrain_checkpoint_save(self, state):
            state["curriculum"] = {"stage": self.stage}

        def ptrain_checkpoint_load(self, state):
            self.stage = state["curriculum"]["stage"]

    fit(callbacks=[Curriculum(), toy.Interrupt(4)], loss=None)
    resumed = Curriculum()
    fit(callbacks=[resumed], loss=None, resume="auto")
    assert resumed.stage == 6


@pytest.mark.parametrize("name", ["adamw", "SGD", "RMSprop", "Adagrad", "Adam"])
def test_an_optimizer_is_chosen_by_its_name(fit, name):
    """Feature: five optimizers."""
    assert fit(optimizer={"name": name, "learning_rate": 0.01}).status == "finished"


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "MultiMarginLoss"])
def test_a_loss_is_chosen_by_its_name(fit, name):
    """Feature: a loss by settings."""
    assert fit(loss=name).status == "finished"


def test_modules_can_be_exempt_from_weight_decay_by_name(fit):
    """Feature: modules that declare themselves free of decay."""
    groups = {}

    class Look:
        def ptrain_run_start(self, run):
            names = {id(tensor): name for name, tensor in run.model.named_parameters()}
            for group in run.optimizer.param_groups:
                groups.update({names[id(t)]: group["weight_decay"] for t in group["params"]})

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fit(model, callbacks=[Look()], optimizer={"no_decay": ["1.*"], "weight_decay": 0.5})
    assert groups == {"0.weight": 0.5, "0.bias": 0.5, "1.weight": 0.0, "1.bias": 0.0}


def test_training_starts_from_the_weights_of_another_run(fit, toy, weights):
    """Feature: init_file."""
    first = fit(out="first")
    second = fit(toy.net(1), out="second", init_from=str(first.folder), length="1 steps",
                 optimizer={"learning_rate": 1e-12})  # fmt: skip
    torch.testing.assert_close(weights(second.folder), weights(first.folder))


# ------------------------------------------------------------------- best, early stopping, average


def test_best_stopping_and_plateau_watch_what_each_is_told(fit, toy, lines):
    """Feature: separate targets for the best checkpoint, early stopping and the plateau."""
    result = fit(
        train=toy.loader(), validation=toy.loader(8), length="4 epochs",
        metrics={"accuracy": MulticlassAccuracy(2, average="micro")},
        best={"watch": "val/accuracy", "mode": "max"},
        schedule={"name": "ReduceLROnPlateau", "watch": "val/loss"},
        schedule_settings={"mode": "min"},
        callbacks=["early_stopping"],
        callback_settings={"early_stopping": {"watch": "val_ema/loss", "patience": 9}},
        ema={"decay": 0.5},
    )  # fmt: skip
    assert {best.watch for best in result.best.values()} == {"val/accuracy", "val_ema/accuracy"}
    assert result.best["raw"].value == max(lines(result.folder, "val/accuracy"))


STOPPED = [
    # losses of the evaluations, settings, after how many it stops
    ([1.0, 0.9, 0.95, 0.95, 0.1], {"patience": 2}, 4),
    ([1.0, 0.99, 0.98, 0.97, 0.1], {"patience": 2, "min_delta": 0.1}, 3),
    ([1.0, 2.0, 1.5, 1.5, 9.0], {"patience": 2, "mode": "max"}, 4),
    ([1.0, 1.1, 0.9, 1.0, 1.0, 0.1], {"patience": 2}, 5),
]


@pytest.mark.parametrize(("losses", "settings", "count"), STOPPED)
def test_early_stopping_counts_evaluations_without_improvement(
    fit, toy, lines, losses, settings, count
):
    """Feature: patience, mode and min_delta."""
    result = fit(
        toy.Scripted(*losses), validation=toy.loader(4), loss=None, length="9 steps",
        evaluate="1 steps", callbacks=["early_stopping"],
        callback_settings={"early_stopping": settings},
    )  # fmt: skip
    assert result.status == "stopped early"
    assert len(evaluated(lines, result.folder)) == count


@pytest.mark.parametrize(
    ("bound", "losses"), [({"lower_bound": 0.5}, (1.0, 0.4)), ({"upper_bound": 9.0}, (1.0, 9.1))]
)
def test_early_stopping_ends_a_run_that_leaves_its_bounds(fit, toy, bound, losses):
    """Feature: lower and upper bounds of what is watched."""
    result = fit(
        toy.Scripted(*losses, 1.0), validation=toy.loader(4), loss=None, length="9 steps",
        evaluate="1 steps", callbacks=["early_stopping"],
        callback_settings={"early_stopping": {"patience": 9, **bound}},
    )  # fmt: skip
    assert (result.status, result.step) == ("stopped early", 2)
    assert next(iter(bound)) in result.reason


def test_the_average_follows_each_step_and_is_evaluated_beside_the_weights(fit, toy, weights):
    """Feature: an exponential moving average, and metrics of its own."""
    history = []

    class Follow:
        def ptrain_run_start(self, run):
            history.append(run.model.weight.detach().clone())

        def ptrain_step_end(self, run):
            history.append(run.model.weight.detach().clone())

    result = fit(
        validation=toy.loader(4), callbacks=[Follow()], ema={"decay": 0.9, "warmup": False}
    )
    average = history[0]
    for now in history[1:]:
        average = 0.9 * average + 0.1 * now
    torch.testing.assert_close(weights(result.folder, file="ema")["weight"], average)
    assert result.metrics["val_ema/loss"] != result.metrics["val/loss"]
    assert result.best.keys() == {"raw", "ema"}


def test_a_checkpoint_holds_everything_that_goes_on(fit, toy):
    """Feature: model, optimizer, schedule, progress, best, early stopping and average in one."""
    result = fit(
        validation=toy.loader(4), ema={"decay": 0.9}, callbacks=["early_stopping"],
        schedule={"name": "cosine", "warmup": "2 steps"},
    )  # fmt: skip
    latest = result.folder / "checkpoints/step-00000006"
    files = {path.name for path in latest.iterdir()}
    assert files >= {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
    state = json.loads((latest / "state.json").read_text())["state"]
    assert state["progress"]["step"] == 6
    kept = json.dumps(state)
    for part in ("schedule", "best", "early_stopping/val/loss", "rng"):
        assert part in kept


# ----------------------------------------------------------------------------------- schedules


MAIN = {
    "cosine": ({}, lambda n, of: 0.5 * (1 + math.cos(math.pi * n / of))),
    "StepLR": ({"step_size": 3, "gamma": 0.5}, lambda n, of: 0.5 ** (n // 3)),
    "MultiStepLR": (
        {"milestones": [2, 5], "gamma": 0.1},
        lambda n, of: 0.1 ** ((n >= 2) + (n >= 5)),
    ),
}


@pytest.mark.parametrize("name", MAIN)
def test_a_warm_up_from_a_share_of_the_rate_comes_before_the_schedule(fit, name):
    """Feature: warmup_steps and warmup_factor, then the main schedule, both by optimizer steps."""
    settings, factor = MAIN[name]
    rates = Rates()
    fit(
        callbacks=[rates], length="12 steps", optimizer={"learning_rate": 1.0},
        schedule={"name": name, "warmup": "4 steps", "start_factor": 0.2},
        schedule_settings=settings,
    )  # fmt: skip
    climb = [0.2, 0.4, 0.6, 0.8]
    assert rates.seen == pytest.approx([*climb, *(factor(n, 8) for n in range(8))])


def test_a_plateau_lowers_the_rate_at_evaluations(fit, toy):
    """Feature: ReduceLROnPlateau, stepped where validation ends."""
    rates = Rates()
    fit(
        toy.Scripted(1.0, 2.0, 2.0), validation=toy.loader(4), loss=None, callbacks=[rates],
        length="3 epochs", schedule={"name": "ReduceLROnPlateau"},
        schedule_settings={"patience": 0, "factor": 0.5}, optimizer={"learning_rate": 1.0},
    )  # fmt: skip
    assert rates.seen == [1.0] * 6 + [0.5] * 3


# ---------------------------------------------------------------------------- events and results


def test_every_moment_of_a_run_calls_those_who_listen(fit, toy):
    """Feature: events of epochs, steps, evaluations and checkpoints; the run's own ends too."""
    diary = toy.Diary()
    fit(validation=toy.loader(4), length="1 epoch", callbacks=[diary, toy.Interrupt(2)])
    again = toy.Diary()
    fit(validation=toy.loader(4), length="1 epoch", callbacks=[again], resume="auto")
    hooks = {call.split()[0] for call in diary.calls + again.calls}
    every = {name.removeprefix("ptrain_") for name in dir(diary) if name.startswith("ptrain_")}
    assert every - hooks == {"run_failed"}


def test_a_listener_of_an_event_that_does_not_exist_is_refused(fit):
    """Feature: an unknown event is an error when it is registered."""

    class Wrong:
        def ptrain_on_progress_tick(self, run):
            """No such hook."""

    with pytest.raises(PtrainError, match="ptrain_on_progress_tick"):
        fit(callbacks=[Wrong()])


def test_an_error_of_a_listener_ends_the_run(fit):
    """Feature: errors of listeners are not swallowed."""

    class Broken:
        def ptrain_log(self):
            raise ValueError("no")

    with pytest.raises(TrainingFailed, match="Broken"):
        fit(callbacks=[Broken()])


def test_a_listener_can_stop_the_run(fit):
    """Feature: a request to stop."""

    class Enough:
        def ptrain_step_end(self, run):
            if run.progress.step == 2:
                run.request_stop("seen enough")

    result = fit(callbacks=[Enough()])
    assert (result.status, result.reason, result.step) == ("stopped early", "seen enough", 2)


def test_the_result_says_where_the_best_is_and_how_the_run_ended(fit, toy):
    """Feature: best step, key and value; final step; time; terminal event."""
    result = fit(toy.Scripted(3.0, 1.0, 2.0), validation=toy.loader(4), loss=None,
                 length="3 epochs")  # fmt: skip
    best = result.best["raw"]
    assert (best.watch, best.value, best.step) == ("val/loss", 1.0, 6)
    assert (result.status, result.step, result.reason) == ("finished", 9, "3 epochs are done")
    assert result.seconds > 0
    about = json.loads((result.folder / "run.json").read_text())
    assert (about["status"], about["step"]) == ("finished", 9)


def test_an_interrupt_is_an_ending_of_its_own(fit, toy):
    """Feature: an interrupt by the user is told from an error."""
    result = fit(callbacks=[toy.Interrupt(2)])
    assert (result.status, result.step) == ("interrupted", 2)


def test_training_and_evaluations_are_lines_of_json(fit, toy, lines):
    """Feature: metrics.jsonl."""
    result = fit(validation=toy.loader(4), log="2 steps", length="1 epoch")
    keys = [{name.partition("/")[0] for name in line} for line in lines(result.folder)]
    assert [("train" in line, "val" in line) for line in keys] == [(True, False), (True, True)]


@pytest.mark.parametrize("mode", ["lines", "bar", "off"])
def test_progress_is_shown_as_told(fit, capsys, mode):
    """Feature: renderers, and how often they print."""
    shown = {"progress_bar": {"mode": mode}}
    fit(callbacks=["progress_bar"], callback_settings=shown, log="2 steps")
    assert bool(capsys.readouterr().err) == (mode != "off")


def test_the_test_split_is_scored_at_the_end_with_the_best_weights(fit, toy, lines):
    """Feature: metrics of a test set."""
    result = fit(validation=toy.loader(4), test=toy.loader(8), length="3 epochs")
    assert len(lines(result.folder, "test/loss")) == 1
    assert "test/loss" in result.metrics


def test_a_profile_of_some_steps_is_recorded(fit):
    """Feature: use_profiler."""
    small = {"skip_first": 1, "wait": 0, "warmup": 1, "active": 2}
    result = fit(callbacks=["profiler"], callback_settings={"profiler": small}, length="6 steps")
    [trace] = result.folder.glob("profiler/*.trace.json")
    assert any(
        event.get("name") == "aten::linear" or "addmm" in event.get("name", "")
        for event in json.loads(trace.read_text())["traceEvents"]
    )


# ------------------------------------------------------------------------------------ its faults


def test_bug_01_a_configured_warm_up_changes_the_rate(dactbert, tmp_path, lines):
    dactbert(tmp_path / "run", schedule__warmup="4 steps", log="1 steps", ema=False)
    rates = lines(tmp_path / "run", "learning_rate")
    assert rates[:4] == pytest.approx([1e-4 * n / 4 for n in (1, 2, 3, 4)])
    assert rates[4] < 1e-4


def test_bug_02_the_profiler_writes_a_trace_and_costs_no_result(fit, toy):
    small = {"skip_first": 0, "wait": 0, "warmup": 1, "active": 1}
    result = fit(
        validation=toy.loader(4), callbacks=["profiler"], callback_settings={"profiler": small}
    )
    assert result.status == "finished" and "val/loss" in result.metrics
    assert list(result.folder.glob("profiler/*.trace.json"))


def test_bug_03_a_checkpoint_that_is_missing_is_an_error(fit, ptrain, tmp_path):
    gone = ptrain("run", "--resume", str(tmp_path / "gone"))
    assert gone.code == 2 and "gone" in gone.err
    folder = fit().folder
    with pytest.raises(PtrainError, match="step-00000099"):
        fit(out="next", init_from={"run": str(folder), "checkpoint": "step-99"})


def test_bug_04_a_run_resumed_inside_an_epoch_equals_one_that_never_stopped(fit, toy, weights):
    def run(out, **more):
        train = DataLoader(Numbered(), batch_size=2, shuffle=True)
        return fit(Reader(), train, loss=None, out=out, length="3 epochs", **more)

    whole = weights(run("whole").folder)
    run("cut", callbacks=[toy.Interrupt(8)])  # two batches into the second epoch
    cut = weights(run("cut", resume="auto").folder)
    assert all(tensor.equal(cut[name]) for name, tensor in whole.items())
    for epoch in range(3):
        seen = cut["seen"][12 * epoch : 12 * epoch + 12]
        assert sorted(seen.tolist()) == list(range(12))


def test_bug_05_a_run_resumed_at_an_epochs_end_ends_no_epoch_twice_and_loads_nothing_again(
    fit, toy
):
    def run(numbers, *callbacks, **more):
        train = DataLoader(numbers, batch_size=4, shuffle=True)
        return fit(Reader(), train, loss=None, callbacks=callbacks, length="2 epochs", **more)

    diary, again, rest = toy.Diary(), toy.Diary(), Numbered()
    run(Numbered(), diary, toy.Interrupt(3))
    run(rest, again, resume="auto")
    ends = [call for call in diary.calls + again.calls if call.startswith("epoch_end")]
    assert ends == ["epoch_end 3", "epoch_end 6"]
    assert sorted(rest.loaded) == list(range(12))


def test_bug_06_a_score_of_numpy_is_kept_and_resumed(fit, toy, lines):
    class Score:
        def ptrain_evaluation_end(self, metrics):
            metrics["val/score"] = np.float32(1.5)
            metrics["val/count"] = np.int64(3)

    watch = {"best": {"watch": "val/score", "mode": "max"}, "validation": toy.loader(4)}
    fit(callbacks=[Score(), toy.Interrupt(4)], **watch)
    result = fit(callbacks=[Score()], resume="auto", **watch)
    assert result.best["raw"].value == 1.5 and result.best["raw"].step == 6
    assert lines(result.folder, "val/count") == [3, 3]


@pytest.mark.parametrize(
    ("length", "evaluate", "steps"), [("10 steps", "4 steps", [4, 8, 10]),
                                      ("5 epochs", "2 epochs", [6, 12, 15])]
)  # fmt: skip
def test_bug_07_the_last_step_is_evaluated_and_saved_whatever_the_cadence(
    fit, toy, lines, length, evaluate, steps
):
    result = fit(validation=toy.loader(4), length=length, evaluate=evaluate, save="never")
    assert evaluated(lines, result.folder) == steps
    assert saved(result.folder)[-1] == steps[-1]


def test_bug_08_early_stopping_is_off_unless_asked_for(fit, toy):
    model = toy.Scripted(*[float(n) for n in range(1, 30)])
    result = fit(model, validation=toy.loader(4), loss=None, length="20 steps", evaluate="1 steps")
    assert (result.status, result.step) == ("finished", 20)


def test_bug_09_an_interrupt_and_an_error_leave_a_checkpoint(fit, toy):
    class Broken:
        def ptrain_step_end(self, run):
            if run.progress.step == 2:
                raise ValueError("broken")

    late = {"save": "never", "evaluate": "never", "length": "9 steps"}
    with pytest.raises(TrainingFailed):
        fit(callbacks=[Broken()], out="failed", **late)
    interrupted = fit(callbacks=[toy.Interrupt(2)], out="interrupted", **late)
    assert saved(interrupted.folder.parent / "failed") == saved(interrupted.folder) == [2]
    assert fit(out="interrupted", resume="auto", **late).step == 9


def test_bug_10_what_is_not_finite_is_never_applied_and_never_a_best(fit, toy, weights, tmp_path):
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.net()
            self.steps = 0

        def forward(self, features):
            self.steps += self.training
            return self.inner(features) * (math.nan if self.steps == 3 else 1.0)

    with pytest.raises(NonFiniteError, match="step 3"):
        fit(Spoilt(), log="100 steps", save="never")
    assert saved(tmp_path / "run") == [2]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    scored = fit(
        toy.Scripted(math.nan, 2.0, 3.0), validation=toy.loader(4), loss=None, length="3 steps",
        evaluate="1 steps", out="scored",
    )  # fmt: skip
    assert (scored.best["raw"].value, scored.best["raw"].step) == (2.0, 2)


def test_bug_11_another_metric_to_stop_by_is_refused_in_words_or_taken_when_allowed(fit, toy):
    def run(watch, *callbacks, **more):
        return fit(
            validation=toy.loader(4), ema={"decay": 0.9}, callbacks=["early_stopping", *callbacks],
            callback_settings={"early_stopping": {"watch": watch}}, **more,
        )  # fmt: skip

    run("val/loss", toy.Interrupt(4))
    with pytest.raises(ResumeError, match=r"early_stopping\"\.watch"):
        run("val_ema/loss", resume="auto")
    allowed = 'callback_settings."core/early_stopping".watch'
    assert run("val_ema/loss", resume="auto", allow=[allowed]).status == "finished"


def test_bug_12_another_best_on_a_resume_is_shown_and_begins_anew(fit, toy):
    scored = {"metrics": {"accuracy": MulticlassAccuracy(2)}, "validation": toy.loader(8)}
    fit(callbacks=[toy.Interrupt(4)], **scored)
    by_accuracy = {"best": {"watch": "val/accuracy", "mode": "max"}}
    with pytest.raises(ResumeError, match=r"(?s)best\.(mode|watch).*val/accuracy"):
        fit(resume="auto", **by_accuracy, **scored)
    told = []
    result = fit(resume="auto", allow=["best"], notify=told.append, **by_accuracy, **scored)
    assert any("best.watch" in line for line in told)
    assert (result.best["raw"].watch, result.best["raw"].step) == ("val/accuracy", 6)


def test_bug_13_a_checkpoint_has_the_models_own_names_however_it_was_run(fit, weights):
    result = fit(compile={"backend": "eager"}, length="2 steps")
    assert set(weights(result.folder)) == {"weight", "bias"}
    fit(out="next", init_from=str(result.folder), length="1 steps")


def test_bug_17_precision_and_compiling_are_settings_and_a_step_is_written_once(fit, toy):
    diary = toy.Diary()
    result = fit(
        validation=toy.loader(4), callbacks=[diary], precision="bf16",
        compile={"backend": "eager"}, save="1 epoch", evaluate="1 epoch", length="1 epoch",
    )  # fmt: skip
    assert result.best["raw"].step == 3
    assert diary.calls.count("checkpoint_committed 3") == 1
    assert [path.name for path in result.folder.glob("checkpoints/.*")] == []


def test_bug_18_data_without_a_length_train_and_data_without_a_batch_are_refused(fit, toy):
    class Stream(IterableDataset):
        def __init__(self, count):
            self.count = count

        def __iter__(self):
            return iter(toy.rows(12) if self.count else ())

    result = fit(
        train=DataLoader(Stream(12), batch_size=4), validation=toy.loader(4), length="7 steps",
        evaluate="1 epoch",
    )  # fmt: skip
    assert result.step == 7 and "val/loss" in result.metrics
    with pytest.raises(PtrainError, match="yield"):
        fit(train=DataLoader(Stream(0), batch_size=4), length="7 steps", out="none")


def test_bug_19_a_run_that_stops_early_ends_its_epoch_like_any_other(fit, toy, lines):
    diary = toy.Diary()
    result = fit(
        toy.Scripted(1.0, 2.0), validation=toy.loader(4), loss=None, length="9 epochs",
        callbacks=["early_stopping", diary],
        callback_settings={"early_stopping": {"patience": 1}},
    )  # fmt: skip
    whole = fit(out="whole", length="2 epochs")
    assert result.status == "stopped early"
    assert "epoch_end 6" in diary.calls and len(lines(result.folder, "train/loss")) == 1
    assert (result.step, result.epoch) == (whole.step, whole.epoch)


def test_bug_20_misspelt_keys_are_named_and_given_settings_stay_as_they_are(fit, toy):
    with pytest.raises(SettingsError, match="max_grad_norm"):
        fit(optimizer={"max_gradnorm": 1.0})
    given = {"early_stopping": {"patience": 2}}
    settings = {"learning_rate": 0.1}
    fit(
        validation=toy.loader(4), callbacks=["early_stopping"], callback_settings=given,
        optimizer=settings,
    )  # fmt: skip
    assert given == {"early_stopping": {"patience": 2}} and settings == {"learning_rate": 0.1}


def test_bug_21_a_batch_is_moved_however_deep_and_stays_what_it_is(fit):
    Pair = namedtuple("Pair", "left right")

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, pair, deep):
            assert type(pair).__name__ == "Pair"
            return {"loss": (self.weight * (pair.left + deep["inner"][0])).mean()}

    ones = torch.ones(2)
    batch = {"pair": Pair(ones, ones), "deep": {"inner": [ones]}}
    assert fit(Nested(), [batch], loss=None, length="1 steps").step == 1


def test_bug_22_min_delta_may_be_left_out(fit, toy):
    result = fit(
        validation=toy.loader(4), callbacks=["early_stopping"],
        callback_settings={"early_stopping": {"patience": 9}},
    )  # fmt: skip
    kept = tomllib.loads((result.folder / "run.toml").read_text())
    assert kept["callback_settings"]["core/early_stopping"]["min_delta"] == 0.0


def test_bug_23_the_test_split_is_scored_once_and_with_the_weights_that_were_best(
    fit, toy, lines, weights
):
    class Grows(nn.Module):
        """Its loss is its weight, which one step raises by one."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, features, _):
            if self.training:
                return {"loss": -self.weight}
            return {"loss": (self.weight - 1).abs()}

    result = fit(
        Grows(), validation=toy.loader(4), test=toy.loader(4), loss=None, length="4 steps",
        evaluate="1 steps", ema={"decay": 0.5, "warmup": False},
        optimizer={"name": "SGD", "learning_rate": 1.0, "weight_decay": 0.0},
        schedule={"name": "constant"},
    )  # fmt: skip
    assert lines(result.folder, "test/loss") == [0.0]  # the weight is 1 after one step
    best_average = abs(weights(result.folder, "best_ema", "ema")["weight"].item() - 1)
    assert lines(result.folder, "test_ema/loss") == [pytest.approx(best_average)]


def test_bug_24_losses_and_metrics_are_means_over_the_same_count(fit, lines):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            value = self.weight + float(len(x))
            return {"loss": value, "count": len(x), "metrics": {"same": value.detach()}}

    batches = [{"x": torch.zeros(n, 1)} for n in (3, 1)]
    result = fit(
        Constant(), batches, batches, loss=None, length="1 epoch", log="1 epoch",
        optimizer={"learning_rate": 1e-12},
    )  # fmt: skip
    mean = pytest.approx((3 * 3 + 1 * 1) / 4)
    [line] = lines(result.folder)
    for name in ("train/loss", "train/same", "val/loss", "val/same"):
        assert line[name] == mean
