"""A run registers its best checkpoint by itself: once, whatever happens to it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.errors import PtrainError, SettingsError
from plugin_trainer.model_store import Store, StoreError
from tests import forkserver

QUIET = ("-progress_bar", "-tensorboard", "register_best")
SCORES = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.9, 5: 0.3, 6: 0.3}
BEST_STEPS = [1, 2, 4]


class Score:
    """Each step's evaluation has a score that is known beforehand: best at steps 1, 2 and 4."""

    def ptrain_evaluation_end(self, run, metrics) -> None:
        for split in {name.partition("/")[0] for name in metrics}:
            metrics[f"{split}/score"] = SCORES[run.progress.step]


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """A run of six steps, each evaluated, whose callback has these settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PTRAIN_MODELS", raising=False)

    def run(*, out="run", callbacks=(), before=(), register=None, **settings):
        torch.manual_seed(0)
        features = torch.randn(12, 4)
        data = TensorDataset(features, (features[:, 0] > 0).long())
        return plugin_trainer.fit(
            nn.Linear(4, 2),
            DataLoader(data, batch_size=4, shuffle=True),
            settings.pop("validation", DataLoader(data, batch_size=4)),
            test=settings.pop("test", None),
            loss=nn.functional.cross_entropy,
            callbacks=(*QUIET, Score(), *callbacks),
            callback_settings={"register_best": {"name": "signs", **(register or {})}},
            out=out,
            notify=lambda line: None,
            **{
                "length": "6 steps",
                "evaluate": "1 steps",
                "best": {"watch": "val/score", "mode": "max"},
                "keep": 1,
                **settings,
            },
        )

    return run


def steps(store: Store | None = None) -> list[int]:
    return [version.step for version in (store or Store()).versions("signs")]


def test_other_callbacks_end_first_so_that_what_they_calibrate_is_registered(fit):
    registered = []

    class Ends:
        def ptrain_run_end(self):
            registered.extend(Store().versions())

    fit(callbacks=[Ends()])
    assert (registered, len(steps())) == ([], 1)


def test_the_best_of_a_run_is_registered_at_its_end(fit):
    result = fit(register={"tags": {"owner": "ann"}, "aliases": ["best", "production"]})
    (version,) = Store().versions()
    assert (version.step, version.value) == (4, 0.9)
    assert version.aliases == ("best", "production") and version.tags == {"owner": "ann"}
    assert version.about["status"] == "finished" and version.about["step"] == 6
    assert result.reports["model store"].splitlines() == [
        "signs:1 is new: step 4, raw weights, val/score 0.9",
        "signs@best is signs:1",
        "signs@production is signs:1",
        "signs:1: its model is in the program that called fit: load it there, with model=MODEL",
    ]


def test_its_test_score_is_registered_with_it(fit):
    data = TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    result = fit(test=DataLoader(data, batch_size=4))
    assert Store().get("signs").metrics["test/loss"] == result.metrics["test/loss"]


def test_each_new_best_is_registered_as_it_is_committed_if_that_is_asked_for(fit):
    seen = {}

    class Look:
        def ptrain_step_end(self, run) -> None:
            seen[run.progress.step] = steps() if run.progress.step > 1 else []

    fit(register={"when": "best"}, callbacks=[Look()])
    assert steps() == BEST_STEPS
    assert seen == {1: [], 2: [1], 3: [1, 2], 4: [1, 2], 5: [1, 2, 4], 6: [1, 2, 4]}
    assert str(Store().get("signs@best")) == "signs:3"


def test_the_best_average_is_registered_for_the_average(fit):
    fit(register={"weights": "ema"}, ema={"decay": 0.5})
    version = Store().get("signs")
    assert (version.weights, version.step, version.value) == ("ema", 4, 0.9)


@pytest.mark.parametrize("when", ["end", "best"])
def test_a_run_that_is_interrupted_and_resumed_registers_nothing_twice(fit, when):
    class Interrupt:
        def ptrain_step_end(self, run) -> None:
            if run.progress.step == 3:
                run.interrupt("a signal was received", signal=signal.SIGTERM)

    register = {"when": when}
    assert fit(callbacks=[Interrupt()], register=register).status == "interrupted"
    assert (steps() if when == "best" else Store().versions()) == ([1, 2] if when == "best" else [])
    fit(register=register, resume="auto")
    assert steps() == (BEST_STEPS if when == "best" else [4])
    fit(register=register, resume="auto")  # it has ended: it is left alone
    assert steps() == (BEST_STEPS if when == "best" else [4])


def test_a_run_that_stopped_early_registers_its_best(fit):
    class Stop:
        def ptrain_step_end(self, run) -> None:
            if run.progress.step == 3:
                run.request_stop("enough")

    assert fit(callbacks=[Stop()]).status == "stopped early"
    assert steps() == [2]


def test_a_run_that_failed_registers_nothing_at_its_end(fit):
    class Break:
        def ptrain_step_end(self, run) -> None:
            if run.progress.step == 3:
                raise ValueError("broken")

    with pytest.raises(PtrainError):
        fit(callbacks=[Break()])
    assert Store().versions() == []


def test_a_longer_run_whose_best_is_the_same_adds_no_version(fit):
    fit(length="5 steps")
    fit(length="6 steps", resume="auto", allow=["length"])
    assert steps() == [4]


KILLED = """
import os, signal, sys
from plugin_trainer.cli.main import main
at = int(sys.argv.pop(1))
seen = 0
def hook(event, about):
    global seen
    name = str(about[0]) if about else ""
    if "registry.sqlite" in name or "/models/" in name or name.startswith("models"):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.process
@pytest.mark.parametrize("when", ["end", "best"])
def test_killed_at_any_moment_of_registering_the_resumed_run_registers_each_once(
    here, tmp_path, when, assert_sound, assert_tidy
):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = ["run", "--plugin", "./toy.py", "--resume", "auto", "--set", "best.watch=val/loss"]
    command += ["--set", "best.mode=min", "--set", "length=1 epoch", "--set"]
    command += ['callbacks=["register_best", "-progress_bar", "-tensorboard"]']
    command += ["--set", "callback_settings.register_best.name=signs"]
    command += ["--set", f"callback_settings.register_best.when={when}"]
    at, codes = 3, set()
    while 0 not in codes:
        child = forkserver.Process(
            script, str(at), *command, "--out", f"runs/{at}", output=tmp_path / f"{at}.txt",
            cwd=here, variables={"PTRAIN_MODELS": f"models-{at}"},
        )  # fmt: skip
        codes.add(child.wait())
        assert child.returncode in (0, -signal.SIGKILL), child.text
        again = forkserver.Process(
            "-m", "plugin_trainer", *command, "--out", f"runs/{at}",
            output=tmp_path / f"{at}-again.txt", cwd=here,
            variables={"PTRAIN_MODELS": f"models-{at}"},
        )  # fmt: skip
        assert again.wait() == 0, again.text
        store = Store(f"models-{at}")
        assert steps(store) == ([3, 6] if when == "best" else [6])
        assert_sound(store)
        at = at * 2 + 1
    assert codes == {0, -signal.SIGKILL}


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "../x"}, "'../x' cannot be the name of a model"),
        ({"aliases": ["3"]}, "'3' cannot be an alias"),
        ({"tags": {"a": "b\nc"}}, "cannot be the value of the tag 'a'"),
        ({"when": "always"}, "is not one of end, best"),
    ],
)
def test_a_mistake_is_found_before_the_run_begins(fit, settings, said):
    with pytest.raises(SettingsError) as caught:
        fit(register=settings)
    assert said in str(caught.value)
    assert not Path("models").exists() and not Path("run/metrics.jsonl").exists()


def test_a_name_is_needed(tmp_path, ptrain, here):
    typed = ptrain("run", "--plugin", "./toy.py", "--set", 'callbacks=["register_best"]')
    assert typed.code == 2
    assert re.search(r"register_best\S*\.name", typed.err), typed.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation": None, "evaluate": "never"}, "it needs validation data"),
        ({"best": {"watch": ""}}, "it needs validation data and best.watch"),
        ({"register": {"weights": "ema"}}, "it needs [ema]"),
    ],
)
def test_a_run_that_can_have_no_best_says_so_at_its_start(fit, settings, said):
    with pytest.raises(PtrainError) as caught:
        fit(**settings)
    assert said in str(caught.value)


def test_a_store_that_cannot_be_written_is_found_before_the_first_step(fit):
    Path("models").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        fit()
    assert not Path("run/metrics.jsonl").exists()


class Spoil:
    """Puts a file where the store keeps its own, at a step."""

    def __init__(self, *, at: int, mend: int = 0) -> None:
        self.at, self.mend = at, mend

    def ptrain_step_end(self, run) -> None:
        staging = Path("models/.staging")
        if run.progress.step == self.at:
            staging.rmdir()
            staging.write_text("in the way")
        if run.progress.step == self.mend:
            staging.unlink()


def test_a_store_that_fails_later_ends_no_training(fit):
    result = fit(register={"when": "best"}, callbacks=[Spoil(at=2, mend=3)])
    assert result.status == "finished" and steps() == [1, 4]
    assert result.reports["model store, missed"].startswith("step 2: the model store models cannot")


def test_a_best_that_cannot_be_registered_at_the_end_is_an_error_and_the_run_is_whole(fit):
    with pytest.raises(StoreError) as caught:
        fit(callbacks=[Spoil(at=6)])
    assert caught.value.message.startswith("the run is whole, but its best checkpoint was not")
    assert any("ptrain models register run --name signs" in line for line in caught.value.hint)
    assert json.loads(Path("run/run.json").read_text())["status"] == "failed"
    Path("models/.staging").unlink()
    fit(resume="auto")
    assert steps() == [4]
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"


def test_a_run_without_a_finite_evaluation_registers_nothing(fit):
    class NoNumber:
        def ptrain_evaluation_end(self, metrics) -> None:
            metrics["val/score"] = float("nan")

    result = fit(callbacks=[NoNumber()])
    assert Store().versions() == []
    assert "nothing was registered" in result.reports["model store"]


def test_a_dry_run_registers_nothing(here, ptrain):
    command = ["run", "--plugin", "./toy.py", "--dry-run", "--set", 'callbacks=["register_best"]']
    typed = ptrain(*command, "--set", "callback_settings.register_best.name=signs")
    assert typed.code == 0, typed.err
    assert not Path("models").exists()


def test_the_store_may_be_another(fit, monkeypatch):
    fit(register={"store": "elsewhere"})
    assert steps(Store("elsewhere")) == [4]
    monkeypatch.setenv("PTRAIN_MODELS", "variable")
    fit(out="second")
    assert steps(Store("variable")) == [4]
    assert not Path("models").exists() and os.environ["PTRAIN_MODELS"] == "variable"
