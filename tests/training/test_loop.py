"""L01, L04: what happens at each step, in which order, in whole runs, cut runs and broken runs."""

from __future__ import annotations

import json

import pytest

from plugin_trainer import hookspecs
from plugin_trainer.errors import TrainingFailed
from plugin_trainer.training.checkpointing.store import read_snapshot

MOMENTS = (
    *("run_start", "epoch_start", "step_end", "log", "evaluation_start", "evaluation_batch_end"),
    *("evaluation_end", "epoch_end", "checkpoint_save", "checkpoint_load", "checkpoint_committed"),
    *("run_end", "run_failed"),
)


def test_the_diary_knows_every_moment():
    behaviour = {"ptrain_move_batch", "ptrain_forward", "ptrain_train_step"}
    elsewhere = {"ptrain_before_optimizer_step", "ptrain_artifact"}  # with their effects
    known = {name for name in vars(hookspecs) if name.startswith("ptrain_")}
    registration = set(hookspecs.REGISTRATION_HOOKS)
    assert known - registration - behaviour - elsewhere == {f"ptrain_{name}" for name in MOMENTS}


class Diary:
    """Writes down every moment with its step; breaks at one of them if asked to."""

    def __init__(self, *, breaks="", error=None):
        self.lines, self.breaks = [], breaks
        self.error = error or ValueError("broken")

    def note(self, run, moment, detail=""):
        line = f"{run.progress.step} {moment}" + (f" {detail}" if detail else "")
        self.lines.append(line)
        if line == self.breaks:
            raise self.error

    def ptrain_run_start(self, run):
        self.note(run, "run_start")

    def ptrain_epoch_start(self, run):
        self.note(run, "epoch_start")

    def ptrain_step_end(self, run, outcome):
        self.note(run, "step_end")

    def ptrain_log(self, run, metrics):
        kinds = [kind for kind in ("train", "val", "val_ema") if f"{kind}/loss" in metrics]
        self.note(run, "log", "+".join(kinds))

    def ptrain_evaluation_start(self, run, split):
        self.note(run, "evaluation_start", split)

    def ptrain_evaluation_batch_end(self, run, split, weights, batch, outcome):
        self.note(run, "evaluation_batch", f"{split} {weights}")

    def ptrain_evaluation_end(self, run, metrics):
        self.note(run, "evaluation_end", " ".join(metrics))

    def ptrain_epoch_end(self, run):
        self.note(run, "epoch_end")

    def ptrain_checkpoint_save(self, run, state):
        self.note(run, "checkpoint_save")

    def ptrain_checkpoint_load(self, run, state):
        self.note(run, "checkpoint_load")

    def ptrain_checkpoint_committed(self, run, path):
        self.note(run, "checkpoint_committed", path.name)

    def ptrain_run_end(self, run, result):
        self.note(run, "run_end", result.status)

    def ptrain_run_failed(self, run, error):
        self.note(run, "run_failed", type(error).__name__)


EVERYTHING = {
    "evaluate": "2 steps",
    "save": "3 steps",
    "log": "2 steps",
    "ema": {"decay": 0.5},
    "best": {"watch": "val/loss", "mode": "max"},  # the loss falls: only the first is a best
    "optimizer": {"learning_rate": 0.05},
}

WHOLE = """
0 run_start
0 epoch_start
1 step_end
2 step_end
2 evaluation_start val
2 evaluation_batch val raw
2 evaluation_batch val ema
2 evaluation_end val/loss val_ema/loss
2 log train+val+val_ema
2 checkpoint_save
2 checkpoint_committed step-00000002
3 step_end
3 epoch_end
3 checkpoint_save
3 checkpoint_committed step-00000003
3 epoch_start
4 step_end
4 evaluation_start val
4 evaluation_batch val raw
4 evaluation_batch val ema
4 evaluation_end val/loss val_ema/loss
4 log train+val+val_ema
5 step_end
6 step_end
6 evaluation_start val
6 evaluation_batch val raw
6 evaluation_batch val ema
6 evaluation_end val/loss val_ema/loss
6 log train+val+val_ema
6 epoch_end
6 checkpoint_save
6 checkpoint_committed step-00000006
6 run_end finished
"""


def lines(text):
    return text.strip().splitlines()


def test_L01_the_moments_of_a_whole_run(fit, toy):
    diary = Diary()
    fit(validation=toy.loader(12, batch_size=12), callbacks=[diary], **EVERYTHING)
    assert diary.lines == lines(WHOLE)


def test_L01_the_moments_of_a_run_without_validation(fit):
    diary = Diary()
    fit(callbacks=[diary], length="2 steps", log="never", evaluate="1 steps", save="never")
    assert diary.lines == lines("""
0 run_start
0 epoch_start
1 step_end
2 step_end
2 log train
2 checkpoint_save
2 checkpoint_committed step-00000002
2 run_end finished
""")


def test_L01_one_more_evaluation_ends_a_run_and_its_checkpoint_carries_it(fit, toy, tmp_path):
    diary = Diary()
    fit(
        validation=toy.loader(12, batch_size=12), callbacks=[diary], length="3 steps",
        evaluate="2 steps", save="1 steps", log="never", best={"watch": "val/loss", "mode": "max"},
    )  # fmt: skip
    tail = diary.lines[diary.lines.index("3 step_end") :]
    assert tail.index("3 evaluation_end val/loss") < len(tail) - 1
    assert tail[-1] == "3 run_end finished"
    state = read_snapshot(tmp_path / "run" / "checkpoints" / "step-00000003").state
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["metrics"] == about["metrics"]
    assert state["best"]["best"]["value"] == about["best"]["raw"]["value"]
    assert state["best"]["best"]["step"] == about["best"]["raw"]["step"]


def test_L04_the_last_checkpoint_knows_a_best_that_only_the_last_evaluation_saw(fit, toy, tmp_path):
    # Saved at its last step, and then evaluated once more, because no evaluation was due there.
    fit(
        validation=toy.loader(12, batch_size=12), length="3 steps", evaluate="2 steps",
        save="1 steps", optimizer={"learning_rate": 0.05},
    )  # fmt: skip
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["best"]["raw"]["step"] == 3
    state = read_snapshot(tmp_path / "run" / "checkpoints" / "step-00000003").state
    assert state["best"]["best"]["step"] == 3
    assert state["metrics"] == about["metrics"]
    assert state["meter"]["sums"] == {}


def test_a_run_that_is_stopped_when_its_epoch_has_ended_is_evaluated_once_more(
    fit, toy, metrics_of
):
    class Stops:
        def ptrain_epoch_end(self, run):
            run.request_stop("enough")

    result = fit(None, None, toy.loader(8), evaluate="never", callbacks=[Stops()])
    lines = metrics_of(result.folder)
    evaluated = [line["step"] for line in lines if "val/loss" in line]
    assert (result.status, result.step, evaluated) == ("stopped early", 3, [3])
    assert result.metrics["val/loss"] == lines[-1]["val/loss"]


def test_L01_the_moments_of_a_run_that_is_asked_to_stop(fit, toy):
    class Stop:
        def ptrain_step_end(self, run):
            if run.progress.step == 4:
                run.request_stop("enough")
                run.request_stop("the first reason counts")

    diary = Diary()
    result = fit(
        validation=toy.loader(12, batch_size=12), callbacks=[diary, Stop()],
        **{**EVERYTHING, "evaluate": "3 steps", "ema": False},
    )  # fmt: skip
    assert (result.status, result.reason, result.step) == ("stopped early", "enough", 4)
    assert diary.lines[diary.lines.index("4 step_end") :] == lines("""
4 step_end
4 evaluation_start val
4 evaluation_batch val raw
4 evaluation_end val/loss
4 log train+val
4 checkpoint_save
4 checkpoint_committed step-00000004
4 run_end stopped early
""")


@pytest.mark.parametrize(
    ("moment", "after"),
    [
        ("0 run_start", ["0 run_failed ValueError"]),
        (
            "4 step_end",
            [
                *("4 checkpoint_save", "4 checkpoint_committed step-00000004"),
                "4 run_failed ValueError",
            ],
        ),
        (
            "4 evaluation_batch val ema",
            [
                *("4 checkpoint_save", "4 checkpoint_committed step-00000004"),
                "4 run_failed ValueError",
            ],
        ),
        ("3 checkpoint_save", ["3 checkpoint_save", "3 run_failed ValueError"]),
        ("3 checkpoint_committed step-00000003", ["3 run_failed ValueError"]),
        ("6 run_end finished", ["6 run_failed ValueError"]),
    ],
)
def test_L01_an_error_of_a_callback_ends_the_run_with_a_checkpoint_and_its_name(
    fit, toy, tmp_path, moment, after
):
    diary = Diary(breaks=moment)
    with pytest.raises(TrainingFailed) as caught:
        fit(validation=toy.loader(12, batch_size=12), callbacks=[diary], **EVERYTHING)
    assert diary.lines[diary.lines.index(moment) + 1 :] == after
    step = moment.partition(" ")[0]
    hook = moment.split()[1].replace("evaluation_batch", "evaluation_batch_end")
    assert caught.value.message == (f"callback 'Diary (1)' failed in ptrain_{hook} at step {step}")
    assert caught.value.hint[0] == "ValueError: broken"
    assert caught.value.hint[1].startswith("raised at training/test_loop.py:") or (
        "test_loop.py:" in caught.value.hint[1]
    )
    if step not in ("0", "3"):
        saved = tmp_path / "run" / "checkpoints" / f"step-0000000{step}"
        assert saved.is_dir()
        assert caught.value.hint[-1] == f"the run was saved to {saved} before stopping"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_an_error_while_failing_does_not_hide_the_first(fit):
    class Worse(Diary):
        def ptrain_run_failed(self, run, error):
            raise RuntimeError("worse")

    with pytest.raises(TrainingFailed, match="failed in ptrain_step_end at step 2") as caught:
        fit(callbacks=[Worse(breaks="2 step_end")])
    assert "RuntimeError: worse" in "".join(caught.value.__notes__)


def test_L01_the_moments_of_a_resumed_run(fit, toy):
    with pytest.raises(KeyboardInterrupt):
        fit(
            validation=toy.loader(12, batch_size=12),
            callbacks=[Diary(breaks="4 step_end", error=KeyboardInterrupt())],
            **EVERYTHING,
        )
    diary = Diary()
    fit(
        validation=toy.loader(12, batch_size=12), callbacks=[diary], resume="auto", **EVERYTHING
    )  # fmt: skip
    whole = lines(WHOLE)
    assert diary.lines[:2] == ["4 checkpoint_load", "4 run_start"]
    assert diary.lines[2:] == whole[whole.index("5 step_end") :]


# ---------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_in_the_order_of_the_list(fit):
    called = []

    class Named:
        def __init__(self, name):
            self.name = name

        def ptrain_step_end(self):
            called.append(self.name)

    fit(callbacks=[Named("first"), Named("second"), Named("third")], length="2 steps")
    assert called == ["first", "second", "third"] * 2


def test_what_a_callback_logs_and_adds_is_in_the_line_and_seen_by_those_after_it(
    fit, tmp_path, metrics_of
):
    class Logs:
        def ptrain_step_end(self, run, outcome):
            assert outcome.loss.requires_grad
            run.log({"mine": outcome.loss * 0 + run.progress.step})
            assert not run.logged["mine"].requires_grad

        def ptrain_log(self, run, metrics):
            metrics["added"] = metrics["mine"] + 1

    fit(callbacks=[Logs()], log="2 steps")
    found = metrics_of(tmp_path / "run")
    assert [(line["step"], line["mine"], line["added"]) for line in found] == [
        *((2, 2.0, 3.0), (4, 4.0, 5.0), (6, 6.0, 7.0)),
    ]


def test_logging_what_is_no_number_names_it(fit):
    class Logs:
        def ptrain_step_end(self, run):
            run.log({"mine": "text"})

    with pytest.raises(Exception, match="'mine' is not a number but str"):
        fit(callbacks=[Logs()], log="1 steps")


def test_a_callback_may_replace_the_whole_step(fit, tmp_path, metrics_of):
    from plugin_trainer import StepOutcome

    class Replace:
        def ptrain_train_step(self, run, micro_batches):
            loss = sum(run.model(batch[0]).sum() * 0 + 3.0 for batch in micro_batches)
            return StepOutcome(loss=loss, count=1)

    fit(callbacks=[Replace()], log="1 steps", length="2 steps")
    assert [line["train/loss"] for line in metrics_of(tmp_path / "run")] == [3.0, 3.0]


def test_a_reported_section_is_part_of_the_result(fit):
    class Reports:
        def ptrain_run_end(self, run):
            run.report("mine", "a line")

    assert fit(callbacks=[Reports()]).reports == {"mine": "a line"}


# ----------------------------------------------------------------------------------- what is logged


def test_each_line_says_where_the_run_stands(fit, toy, tmp_path, metrics_of):
    fit(train=toy.loader(10), log="1 steps", length="2 epochs")
    found = metrics_of(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in found] == pytest.approx(
        [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-6
    )
    assert [line["samples"] for line in found] == [4, 8, 10, 14, 18, 20]


def test_the_logged_loss_is_the_mean_over_the_samples_since_the_last_line(
    fit, toy, tmp_path, metrics_of
):
    options = {"train": toy.loader(10), "length": "3 steps"}
    fit(log="1 steps", out="each", **options)
    fit(log="3 steps", out="run", **options)
    a, b, c = [line["train/loss"] for line in metrics_of(tmp_path / "each")]
    (line,) = metrics_of(tmp_path / "run")
    assert line["train/loss"] == pytest.approx((4 * a + 4 * b + 2 * c) / 10)


def test_what_was_not_logged_yet_at_the_end_is_logged_then(fit, tmp_path, metrics_of):
    fit(log="4 steps")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [4, 6]
