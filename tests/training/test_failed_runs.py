"""What a run that failed leaves, and what may follow it in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import plugin_trainer
from plugin_trainer.errors import NotSaved, PtrainError, ResumeError, RunFolderError, TrainingFailed


class Fails:
    """Raises in one of its hooks, after a step."""

    def __init__(self, step):
        self.step = step

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            raise ValueError("broken on purpose")


class FailsAtOnce:
    def ptrain_run_start(self):
        raise ValueError("broken on purpose")


def about(run):
    return json.loads((run / "run.json").read_text())


# -------------------------------------------------------------------------------- its traceback


@pytest.mark.parametrize("failing", [FailsAtOnce(), Fails(2)])
def test_the_traceback_is_kept_and_the_message_says_where(fit, tmp_path, failing):
    with pytest.raises(TrainingFailed) as caught:
        fit(callbacks=[failing])
    path = tmp_path / "run" / "error.txt"
    assert f"the traceback is in {path}" in caught.value.hint
    text = path.read_text()
    assert "Traceback (most recent call last)" in text
    assert text.rstrip().endswith("ValueError: broken on purpose")
    assert "in ptrain_" in text


def test_the_traceback_of_a_mistake_that_is_told_in_words_is_kept_too(fit, tmp_path):
    diverging = nn.Linear(4, 2)
    with torch.no_grad():
        diverging.weight.fill_(torch.inf)
    with pytest.raises(PtrainError, match="the loss is nan"):
        fit(diverging)
    assert "NonFiniteError" in (tmp_path / "run" / "error.txt").read_text()


def test_a_traceback_goes_once_the_run_goes_on(fit, tmp_path):
    with pytest.raises(TrainingFailed):
        fit(callbacks=[Fails(2)])
    fit(resume="auto")
    assert not (tmp_path / "run" / "error.txt").exists()


def test_a_callback_that_finds_the_folder_gone_is_not_to_blame(fit):
    class Writes:
        def ptrain_step_end(self, run):
            shutil.rmtree(run.folder)
            (run.folder / "notes.txt").write_text("")

    with pytest.raises(NotSaved, match="was moved or deleted while"):
        fit(callbacks=[Writes()])


# ------------------------------------------------------------------ before its first checkpoint


def test_a_run_that_saved_nothing_starts_anew_with_whatever_settings(fit, tmp_path):
    with pytest.raises(TrainingFailed):
        fit(callbacks=[FailsAtOnce()], seed=1)
    notices = []
    result = fit(resume="auto", seed=2, length="1 epochs", notify=notices.append)
    assert result.status == "finished"
    assert notices == [f"{tmp_path / 'run'} has no checkpoint yet: it starts at step 0"]
    assert "seed = 2" in (tmp_path / "run" / "run.toml").read_text()
    fresh = fit(out="fresh", seed=2, length="1 epochs")
    assert torch.equal(result.model.weight, fresh.model.weight)
    assert about(tmp_path / "run").keys() == about(tmp_path / "fresh").keys()


def test_its_assets_are_those_of_the_new_settings(fit, toy, tmp_path):
    class Rows(nn.Linear):
        """A model that keeps its name with the run."""

        def __init__(self, name):
            super().__init__(4, 2)
            self.name = name

        def save_assets(self, folder):
            (folder / self.name).touch()

    with pytest.raises(TrainingFailed):
        fit(Rows("old"), callbacks=[FailsAtOnce()])
    fit(Rows("new"), resume="auto")
    assert [path.name for path in (tmp_path / "run" / "assets").iterdir()] == ["new"]


# --------------------------------------------------------------------------------- overwriting


def test_a_run_is_overwritten_when_that_is_asked_for_by_name(fit, tmp_path):
    fit(seed=1)
    (tmp_path / "run" / "tensorboard").mkdir()
    with pytest.raises(RunFolderError, match="is occupied"):
        fit(seed=2)
    result = fit(seed=2, overwrite=True, length="1 epochs")
    assert result.step == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *(".lock", "assets", "checkpoints", "metrics.jsonl", "run.json", "run.toml"),
    ]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [
        "step-00000003"
    ]


def test_a_run_is_not_overwritten_by_one_that_cannot_begin(fit, tmp_path):
    fit()
    with pytest.raises(PtrainError, match="device"):
        fit(overwrite=True, device="nowhere")
    assert (tmp_path / "run" / "checkpoints" / "step-00000006").is_dir()


def test_a_folder_that_may_be_more_than_a_run_is_not_overwritten(fit, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "run.toml").write_text("")
    with pytest.raises(RunFolderError, match=r"has a run.toml, but no run.json"):
        fit(overwrite=True, out="project")
    fit()
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(RunFolderError, match="the command was started in it"):
        fit(overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResumeError, match="either resumed or overwritten"):
        fit(overwrite=True, resume="auto")
    assert (tmp_path / "run" / "run.json").is_file()


# ------------------------------------------------------- the folder moved or deleted meanwhile


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def moved_and_replaced(run: Path) -> None:
    moved(run)
    shutil.copytree(run.with_name("elsewhere"), run)


def emptied(run: Path) -> None:
    """As `rm -r run/*` does it."""
    for path in run.iterdir():
        if not path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("away", [shutil.rmtree, emptied, moved, moved_and_replaced])
@pytest.mark.parametrize("step", [2, 6])
def test_a_run_whose_folder_is_gone_ends_in_words_at_the_next_save(fit, tmp_path, away, step):
    class Takes:
        def ptrain_step_end(self, run):
            if run.progress.step == step:
                away(run.folder)

    with pytest.raises(NotSaved, match="was moved or deleted while") as caught:
        fit(callbacks=[Takes()], save="1 steps")
    assert caught.value.exit_code == 1
    assert not any("the run was saved" in line for line in caught.value.hint)
    run = tmp_path / "run"
    if away is moved_and_replaced:
        assert about(run)["status"] == "running"  # another's: left as it was
        assert not (run / "checkpoints" / f"step-{step:08d}").exists()
    else:
        assert not run.exists() or list(run.iterdir()) == [run / ".lock"]
    if away in (moved, moved_and_replaced):
        result = fit(out="elsewhere", resume="auto", save="1 steps")
        assert result.status == "finished"


class Odd(BaseException):
    """What no `except Exception` catches."""


@pytest.mark.parametrize("hook", ["run_failed", "checkpoint_save", "step_end"])
@pytest.mark.parametrize("error", [Odd, ValueError, SystemExit])
def test_a_run_whose_callbacks_fail_while_it_ends_is_not_left_running(toy, tmp_path, hook, error):
    class Breaks:
        def ptrain_before_optimizer_step(self, run):
            if run.progress.step == 2:
                raise ValueError("first")

    def fail(self):
        raise error("second")

    second = type("Second", (), {f"ptrain_{hook}": fail})()
    with pytest.raises(BaseException, match=r"first|second"):
        plugin_trainer.fit(
            toy.net(), toy.loader(), loss="CrossEntropyLoss", length="4 steps",
            out=tmp_path / "run", callbacks=["-progress_bar", "-tensorboard", Breaks(), second],
            notify=lambda line: None,
        )  # fmt: skip
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "failed"


@pytest.mark.parametrize("error", [Odd, ValueError])
def test_neither_is_one_whose_callback_fails_to_take_its_state_back(toy, tmp_path, error):
    class Interrupts:
        def ptrain_step_end(self, run):
            run.interrupt("enough", signal=15)

    class Loads:
        def ptrain_checkpoint_load(self):
            raise error("no")

    def train(callback):
        return plugin_trainer.fit(
            toy.net(), toy.loader(), loss="CrossEntropyLoss", length="4 steps", resume="auto",
            out=tmp_path / "run", callbacks=["-progress_bar", "-tensorboard", callback],
            notify=lambda line: None,
        )  # fmt: skip

    train(Interrupts())
    with pytest.raises(BaseException, match="no"):
        train(Loads())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] != "running"
