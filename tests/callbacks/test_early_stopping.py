"""A run stops after as many evaluations without improvement as it was told, and no sooner."""

from __future__ import annotations

import json

import pytest
import torch

from plugin_trainer.callbacks.early_stopping import EarlyStopping
from plugin_trainer.callbacks.settings import EarlyStoppingSettings
from plugin_trainer.errors import PtrainError, SettingsError

QUIET = ("-progress_bar", "-tensorboard")


class Script:
    """Gives each evaluation a score from a list, the last one again and again."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores
        self.seen = 0

    def ptrain_evaluation_end(self, metrics) -> None:
        metrics["val/score"] = self.scores[min(self.seen, len(self.scores) - 1)]
        self.seen += 1

    def ptrain_checkpoint_save(self, state) -> None:
        state["script"] = self.seen

    def ptrain_checkpoint_load(self, state) -> None:
        self.seen = state["script"]


def stopped(fit, scores, *, callbacks=(), **settings):
    """A run of at most 20 evaluations, one a step."""
    known = ("watch", "mode", "patience", "min_delta", "restore_best", "lower_bound", "upper_bound")
    stopping = {key: settings.pop(key) for key in known if key in settings}
    return fit(
        # Objects are called after what is configured by name, but the script must come first.
        callbacks=[*QUIET, *callbacks, Before(Script(*scores), stopping)],
        **{"length": "20 steps", "evaluate": "1 steps", **settings},
    )


class Before:
    """Early stopping behind a script of scores."""

    def __init__(self, script, settings):
        self.script = script
        self.stopping = EarlyStopping(EarlyStoppingSettings(watch="val/score", **settings))

    def ptrain_evaluation_end(self, run, metrics):
        self.script.ptrain_evaluation_end(metrics)
        self.stopping.ptrain_evaluation_end(run, metrics)

    def ptrain_run_end(self, run, result):
        self.stopping.ptrain_run_end(run, result)

    def ptrain_checkpoint_save(self, state):
        self.script.ptrain_checkpoint_save(state)
        self.stopping.ptrain_checkpoint_save(state)

    def ptrain_checkpoint_load(self, state):
        self.script.ptrain_checkpoint_load(state)
        self.stopping.ptrain_checkpoint_load(state)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_best_at_the_first_evaluation_and_flat_stops_at_patience_plus_one(fit, patience):
    result = stopped(fit, [1.0], patience=patience)
    assert result.step == patience + 1
    assert result.status == "stopped early"
    count = "1 evaluation" if patience == 1 else f"{patience} evaluations"
    assert result.reason == f"val/score has not improved for {count} (best 1)"


def test_an_improvement_starts_the_count_again(fit):
    assert stopped(fit, [5, 6, 4, 5, 3, 4, 4], patience=2).step == 7


def test_an_improvement_no_larger_than_min_delta_is_none(fit):
    assert stopped(fit, [1.0, 0.9, 0.8, 0.7], patience=3, min_delta=0.5).step == 4
    assert stopped(fit, [1.0, 0.5], patience=2, min_delta=0.5, out="equal").step == 3
    falling = [10.0 - index for index in range(20)]
    assert stopped(fit, falling, patience=1, min_delta=0.5, out="never").status == "finished"


def test_in_mode_max_higher_is_better(fit):
    rising = [float(index) for index in range(20)]
    assert stopped(fit, rising, patience=1, mode="max").status == "finished"
    assert stopped(fit, rising, patience=1, mode="min", out="other").step == 2


def test_what_is_not_finite_is_neither_a_best_nor_an_improvement(fit):
    nan, inf = float("nan"), float("inf")
    result = stopped(fit, [nan, -inf, inf], patience=3)
    assert result.step == 3 and "no finite value yet" in result.reason
    assert stopped(fit, [nan, 1.0, nan, 1.0], patience=2, out="other").step == 4


def test_the_count_survives_a_resume(fit, tmp_path):
    class Kill:
        def ptrain_checkpoint_committed(self, run):
            if run.progress.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(fit, [1.0], patience=5, save="1 steps", callbacks=[Kill()])
    result = stopped(fit, [1.0], patience=5, save="1 steps", resume="auto")
    assert result.step == 6


def test_an_unknown_metric_lists_the_known_ones(fit):
    with pytest.raises(PtrainError, match="the evaluation gave no metric 'val/acuracy'") as caught:
        fit(
            callbacks=[*QUIET, "early_stopping"],
            callback_settings={"early_stopping": {"watch": "val/acuracy"}},
            evaluate="1 steps",
        )
    assert caught.value.message.startswith("early_stopping.watch: ")
    assert caught.value.hint[0] == "it gave: val/loss"


def test_the_test_split_is_no_evaluation_though_a_callback_adds_to_it(fit):
    class Adds:
        def ptrain_evaluation_end(self, metrics):
            metrics["seconds_of_evaluation"] = 1.0

    stopping = EarlyStopping(EarlyStoppingSettings())  # as an object, called after the other one
    test = [(torch.zeros(2, 4), torch.zeros(2).long())]
    result = fit(test=test, callbacks=[*QUIET, Adds(), stopping])
    assert "test/loss" in result.metrics and result.status == "finished"


def test_the_average_can_be_watched(fit):
    fit(
        callbacks=[*QUIET, "early_stopping"], ema={"decay": 0.9},
        callback_settings={"early_stopping": {"watch": "val_ema/loss"}},
    )  # fmt: skip


def test_early_stopping_is_off_unless_asked_for(fit):
    class Flat:
        def ptrain_evaluation_end(self, metrics):
            metrics["val/loss"] = 1.0

    assert fit(callbacks=[*QUIET, Flat()], length="30 steps", evaluate="1 steps").step == 30


@pytest.mark.parametrize("restore", [True, False])
def test_the_best_weights_come_back_only_where_asked_for(fit, tmp_path, restore):
    from plugin_trainer.training.checkpointing.store import read_weights

    class Watch(Script):
        """Makes the second evaluation the best by the loss that [best] watches."""

        def ptrain_evaluation_end(self, metrics):
            super().ptrain_evaluation_end(metrics)
            metrics["val/loss"] = metrics["val/score"]

    result = fit(
        callbacks=[*QUIET, Watch(2.0, 1.0, 3.0), "early_stopping"],
        callback_settings={"early_stopping": {"restore_best": restore, "patience": 9}},
        evaluate="1 steps",
        save="1 steps",
        keep="all",
    )
    assert result.best["raw"].step == 2
    best, last = (
        read_weights(tmp_path / "run" / "checkpoints" / f"step-0000000{step}", weights="raw")
        for step in (2, 6)
    )
    expected = best if restore else last
    assert torch.equal(result.model.weight, expected["weight"])
    assert not torch.equal(best["weight"], last["weight"])


def test_restoring_the_best_where_none_was_ever_finite_ends_the_run_in_peace(fit, tmp_path):
    class Never:
        def ptrain_evaluation_end(self, metrics):
            metrics["val/loss"] = float("nan")

    result = fit(
        callbacks=[*QUIET, Never(), "early_stopping"],
        callback_settings={"early_stopping": {"restore_best": True, "patience": 99}},
    )
    assert result.status == "finished" and result.best == {}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "settings", [{"patience": 0}, {"min_delta": -1}, {"mode": "up"}, {"pateince": 3}]
)
def test_settings_out_of_range_are_refused(fit, settings):
    with pytest.raises(SettingsError):
        fit(
            callbacks=[*QUIET, "early_stopping"], callback_settings={"early_stopping": settings}
        )  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"lower_bound": 0.5}, "val/score is 0.4, below lower_bound 0.5"),
        ({"upper_bound": 2.5}, "val/score is 3, above upper_bound 2.5"),
    ],
)
def test_a_value_beyond_a_bound_stops_the_run_at_once(fit, bounds, reason):
    scores = (1.0, 0.5, 2.5, 0.4, 9.0) if "lower_bound" in bounds else (1.0, 2.5, 0.1, 3.0, 0.0)
    result = stopped(fit, scores, patience=100, **bounds)
    assert (result.step, result.reason) == (4, reason)


def test_one_object_that_stopped_a_run_begins_anew_in_the_next(fit):
    from plugin_trainer.callbacks.early_stopping import EarlyStopping
    from plugin_trainer.callbacks.settings import EarlyStoppingSettings

    stopping = EarlyStopping(EarlyStoppingSettings(watch="val/score", patience=1))

    def last_step(out: str, *scores: float) -> int:
        return fit(
            callbacks=[*QUIET, Script(*scores), stopping], out=out,
            length="20 steps", evaluate="1 steps",
        ).step  # fmt: skip

    assert last_step("first", 0.1, 0.2) == 2
    assert last_step("second", 9.0, 8.0, 7.0, 7.5) == 4
