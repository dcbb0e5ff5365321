"""`ptrain tune` in one process: what is tried, what is kept, what goes on after a stop."""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from pathlib import Path

import optuna
import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.configuration import configure
from plugin_trainer.settings.layers import from_assignments, read_toml
from plugin_trainer.settings.tuning import RangeSettings
from plugin_trainer.tuning.ranges import Range, as_layer, known
from plugin_trainer.tuning.search import surroundings
from plugin_trainer.tuning.studies import open_study

pytestmark = pytest.mark.slow

LOG_RATE = """
    [tune.space."optimizer.learning_rate"]
    low = 1e-3
    high = 1.0
    log = true
"""


def params(study, stage=0):
    return [dict(trial.params) for trial in open_study(study).stages[stage].trials]


def test_a_study_leaves_its_trials_its_settings_and_its_winner(here, capsys):
    assert here.tune("run.toml", "--study", "s", "--trials", "4") == 0
    study = open_study("s")
    [stage] = study.stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 4
    for trial in stage.trials:
        x = trial.params["model_settings.x"]
        assert 0 <= x <= 6
        # Of the bowl, what training leaves is the same in all trials, and below 1.
        assert (x - 3) ** 2 < trial.values[0] < (x - 3) ** 2 + 1
        assert trial.folder == study.folder / "trials" / f"{trial.number:04}"
        run = tomllib.loads((trial.folder / "run.toml").read_text())
        assert run["model_settings"]["x"] == x
        assert "tune" not in run
    winner = min(stage.trials, key=lambda trial: abs(trial.params["model_settings.x"] - 3))
    assert stage.winner() == winner
    best = configure(read_toml(study.folder / "best.toml"))
    assert best.model.settings.x == winner.params["model_settings.x"]
    told = capsys.readouterr()
    assert "study s: 4 finished, of 4" in told.out
    assert "ptrain run studies/s/best.toml" in told.out
    assert re.search(r"trial 3: finished: val/loss \S+ \(best evaluation\)", told.err)
    assert "ptrain study best s" in told.out


def test_trials_do_not_score_the_test_split_and_the_run_with_their_winner_does(here):
    bowl = here.folder / "bowl.py"
    bowl.write_text(bowl.read_text().replace("self.validation =", "self.test = self.validation ="))
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    [trial] = open_study("s").stages[0].trials
    assert trial.state == "finished"
    assert '"test/loss"' not in (trial.folder / "metrics.jsonl").read_text()
    assert main(["run", "studies/s/best.toml", "--out", "best"]) == 0
    assert '"test/loss"' in Path("best/metrics.jsonl").read_text()


def test_a_search_whose_output_nobody_reads_any_more_goes_on(here, monkeypatch):
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(f"sys.{name}", os.fdopen(writing, "w", buffering=1))
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    assert [trial.state for trial in open_study("s").stages[0].trials] == ["finished"]


def test_trials_is_the_total_and_a_later_command_makes_what_is_missing(here):
    assert here.tune("run.toml", "--study", "s", "--trials", "2") == 0
    before = here.diary()
    assert here.tune("run.toml", "--study", "s", "--trials", "2") == 0
    assert here.diary() == before
    assert here.tune("--study", "s") == 0
    assert here.diary() == before
    assert here.tune("--study", "s", "--trials", "5") == 0
    assert len(open_study("s").stages[0].trials) == 5
    assert here.diary()[: len(before)] == before


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_however_often_the_study_was_stopped(here):
    sampler = "sampler_settings = {n_startup_trials = 2}\n"  # and then what it has learnt
    here.write(
        "rates.toml", here.run, here.space.replace("pruner", f"{sampler}    pruner"), LOG_RATE
    )
    assert here.tune("rates.toml", "--study", "whole", "--trials", "5") == 0
    for number in (1, 4, 5):
        assert here.tune("rates.toml", "--study", "parts", "--trials", str(number)) == 0
    assert params("whole") == params("parts")
    assert len({trial["model_settings.x"] for trial in params("whole")}) == 5
    assert here.tune("rates.toml", "--study", "other", "--trials", "2", "--set", "seed=1") == 0
    assert params("other") != params("whole")[:2]


def test_a_study_that_has_no_name_gets_one(here):
    assert here.tune("run.toml", "--trials", "1") == 0
    assert here.tune("run.toml", "--trials", "1") == 0
    assert (here.folder / "studies" / "bowl-2" / "best.toml").is_file()


# ---------------------------------------------------------------------------------------- spaces


def test_whole_numbers_choices_and_conditions(here):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        sampler = "random"
        trials = 8
        pruner = "none"
        [tune.space."model_settings.layers"]
        low = 2
        high = 8
        step = 3
        when = {"model_settings.kind" = "deep"}
        [tune.space."model_settings.kind"]
        choices = ["plain", "deep"]
        [tune.space."model_settings.x"]
        low = 0
        high = 1
        """,
    )
    assert here.tune("run.toml", "--study", "s") == 0
    tried = params("s")
    deep = [its for its in tried if its["model_settings.kind"] == "deep"]
    plain = [its for its in tried if its["model_settings.kind"] == "plain"]
    assert deep and plain
    assert {its["model_settings.layers"] for its in deep} <= {2, 5, 8}
    assert all("model_settings.layers" not in its for its in plain)
    assert {type(its["model_settings.layers"]) for its in deep} == {int}
    # 0 to 1 of a key that takes fractions is not 0 or 1.
    assert all(0 < its["model_settings.x"] < 1 for its in tried)
    for trial in open_study("s").stages[0].trials:
        run = tomllib.loads((trial.folder / "run.toml").read_text())
        assert run["model_settings"]["layers"] == trial.params.get("model_settings.layers", 1)


def test_a_grid_is_tried_whole_and_ends_by_itself(here):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        sampler = "grid"
        [tune.space."model_settings.x"]
        low = 2.0
        high = 3.0
        step = 1.0
        [tune.space."model_settings.width"]
        choices = [2, 4]
        """,
    )
    assert here.tune("run.toml", "--study", "s") == 0
    tried = {(its["model_settings.x"], its["model_settings.width"]) for its in params("s")}
    assert tried == {(x, width) for x in (2.0, 3.0) for width in (2, 4)}
    assert len(params("s")) == 4


def test_what_follows_from_a_searched_key_follows_it_in_every_trial(here):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        trials = 2
        sampler = "grid"
        [tune.space."model_settings.encoder"]
        choices = ["a", "b"]
        """,
    )
    assert here.tune("run.toml", "--study", "s") == 0
    for trial in open_study("s").stages[0].trials:
        run = tomllib.loads((trial.folder / "run.toml").read_text())
        assert run["data_settings"]["tokenizer"] == trial.params["model_settings.encoder"]


def test_a_plugin_ships_spaces(here, capsys):
    here.write("plain.toml", here.run)
    assert here.tune("plain.toml", "--study", "default", "--trials", "2") == 0
    assert all(its["model_settings.x"] <= 4 for its in params("default"))
    assert here.tune("plain.toml", "--study", "far", "--space", "far", "--trials", "2") == 0
    assert all(its["model_settings.x"] >= 40 for its in params("far"))
    # The run file goes over the space's own settings, and a space of its own over the default.
    assert open_study("default").settings["save"] == "2 steps"
    assert here.tune("run.toml", "--study", "own", "--trials", "1") == 0
    assert open_study("own").settings["tune"]["space"]["model_settings.x"]["high"] == 6
    assert here.tune("plain.toml", "--study", "none", "--space", "fur") == 2
    assert "no search space 'fur'" in capsys.readouterr().err


def test_stages_start_from_the_winner_of_the_one_before(here, capsys):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        trials = 2
        pruner = "none"
        [[tune.stages]]
        name = "place"
        trials = 3
        [tune.stages.space."model_settings.x"]
        low = 0
        high = 6
        [[tune.stages]]
        name = "rate"
        [tune.stages.space."optimizer.learning_rate"]
        low = 1e-3
        high = 1.0
        log = true
        [tune.stages.space."model_settings.width"]
        low = 8
        high = 16
        """,
    )
    assert here.tune("run.toml", "--study", "s", "--set", "optimizer.learning_rate=0.25") == 0
    study = open_study("s")
    place, rate = study.stages
    assert (len(place.trials), len(rate.trials)) == (3, 2)
    won = place.winner().params["model_settings.x"]
    for trial in rate.trials:
        assert trial.folder.parent == study.folder / "rate" / "trials"
        run = tomllib.loads((trial.folder / "run.toml").read_text())
        assert run["model_settings"]["x"] == won
        assert run["optimizer"]["learning_rate"] == trial.params["optimizer.learning_rate"]
    # First of all what the run had: a stage ends no worse than it began. Its width of 4 cannot be.
    first, second = (trial.params for trial in rate.trials)
    assert first["optimizer.learning_rate"] == 0.25 != second["optimizer.learning_rate"]
    assert 8 <= first["model_settings.width"] <= 16
    best = configure(read_toml(study.folder / "best.toml"))
    assert best.model.settings.x == won
    assert best.settings.optimizer.learning_rate == rate.winner().params["optimizer.learning_rate"]
    told = capsys.readouterr()
    assert f"stage place: trial {place.winner().number} wins" in told.err
    assert "stage rate: 2 finished, of 2" in told.out
    # The second command finds everything done.
    before = here.diary()
    assert here.tune("--study", "s") == 0
    assert here.diary() == before


@pytest.mark.parametrize(
    ("settings", "value", "holds"),
    [
        ({"low": 1, "high": 8}, 8, True),
        ({"low": 1, "high": 8}, 9, False),
        ({"low": 1, "high": 8}, 2.0, False),
        ({"low": 0, "high": 1}, True, False),
        ({"low": 2, "high": 8, "step": 3}, 5, True),
        ({"low": 2, "high": 8, "step": 3}, 6, False),
        ({"low": 0.1, "high": 0.7, "step": 0.2}, 0.3, True),
        ({"low": 0.1, "high": 0.7, "step": 0.2}, 0.4, False),
        ({"low": 1e-5, "high": 1e-3, "log": True}, 3e-5, True),
        ({"low": 1e-5, "high": 1e-3, "log": True}, None, False),
    ],
)
def test_what_a_range_holds(settings, value, holds):
    whole = all(isinstance(settings.get(end), int) for end in ("low", "high"))
    its = Range("model_settings.key", RangeSettings(**settings), whole=whole)
    assert its.holds(value) is holds
    had = {"model_settings": {"key": value}}
    assert known([its], lambda _: had) == ({its.key: value} if holds else {})


@pytest.mark.parametrize(
    ("key", "had", "choices", "kept"),
    [
        ("schedule.name", "cosine", ("linear", "cosine"), "cosine"),
        ("schedule.name", "core/cosine", ("linear", "cosine"), "cosine"),
        ("schedule.name", "constant", ("linear", "cosine"), None),
        ("length", "6 steps", ("12 steps", "0_6 steps"), "0_6 steps"),
        ("model", "bowl/net", ("net",), "net"),
        ("accumulate", "1", (True, 1), 1),
        ("optimizer.settings.momentum", "", (0.0, 0.9), None),
        ("model_settings.kind", "deep", ("shallow", "deep"), "deep"),  # the first is a mistake
    ],
)
def test_a_choice_is_what_the_run_has_however_it_is_spelt(here, key, had, choices, kept):
    here.write("plain.toml", here.run)
    base = read_toml(Path("plain.toml"))

    def settings_with(values):
        own = from_assignments([f"{key}={had}"] if had else [])
        return configure(base, over=[own, as_layer(values, where="here")]).values()

    its = Range(key, RangeSettings(choices=choices))
    found = known([its], settings_with)
    assert found == ({} if kept is None else {key: kept})
    assert type(found.get(key)) is type(kept)


# ---------------------------------------------------------------------- pruning, several objectives


def test_a_bad_trial_is_pruned_by_the_number_of_its_evaluation(here):
    space = """
        [tune]
        sampler = "grid"
        pruner_settings = {n_startup_trials = 2}
        [tune.space."model_settings.x"]
        choices = [3.0, 3.5, 50.0, 60.0]
    """
    here.write("run.toml", here.run, space)
    assert here.tune("run.toml", "--study", "s", "--set", "seed=1") == 0
    trials = open_study("s").stages[0].trials
    for trial in trials:
        assert [*trial.reports] == [1, 2, 3][: len(trial.reports)]
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert (trial.steps, [*trial.reports]) == (2, [1])
        assert trial.reason.startswith("pruned at evaluation 1: val/loss ")
        assert trial.params["model_settings.x"] >= 50
    finished = [trial for trial in trials if trial.state == "finished"]
    assert all(trial.steps == 6 and [*trial.reports] == [1, 2, 3] for trial in finished)


def test_two_objectives_give_a_front_and_say_that_they_cannot_prune(here, capsys):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        sampler = "grid"
        winner_by = "val/depth"
        [[tune.objectives]]
        metric = "val/loss"
        [[tune.objectives]]
        metric = "val/depth"
        [tune.space."model_settings.x"]
        low = 0
        high = 5
        step = 1
        """,
    )
    assert here.tune("run.toml", "--study", "s") == 0
    [stage] = open_study("s").stages
    by_x = {trial.params["model_settings.x"]: trial for trial in stage.trials}
    assert [trial.params["model_settings.x"] for trial in stage.front()] == [3, 2, 1, 0]
    assert stage.winner() == by_x[0]
    assert by_x[2].values[1] == 3
    assert all(trial.reports == {} for trial in stage.trials)
    assert capsys.readouterr().err.count("Optuna prunes by one only") == 1
    opened = optuna.load_study(study_name="s", storage="sqlite:///studies/s/study.db")
    assert len(opened.best_trials) == 4


# ------------------------------------------------------------------------------------- failing


def test_a_failed_trial_is_written_down_and_the_study_goes_on(here, capsys):
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        sampler = "grid"
        [tune.space."model_settings.broken"]
        choices = [true, false]
        """,
    )
    assert here.tune("run.toml", "--study", "s") == 0
    trials = open_study("s").stages[0].trials
    assert sorted(trial.state for trial in trials) == ["failed", "finished"]
    [failed] = [trial for trial in trials if trial.state == "failed"]
    assert "this one is broken on purpose" in failed.reason
    told = capsys.readouterr()
    assert f"trial {failed.number}: failed: " in told.err
    assert "Traceback" not in told.err


def test_a_setting_that_is_searched_is_not_to_be_set(here, capsys):
    typed = ["--set", "model_settings.x=5", "--set", "model_settings.width=8"]
    assert here.tune("run.toml", "--study", "s", "--trials", "1", *typed) == 0
    told = capsys.readouterr().err
    assert "model_settings.x is searched: what --set gives it has no effect" in told
    assert "width is searched" not in told


@pytest.mark.process
def test_a_study_of_which_every_trial_has_failed_is_a_failure(here, capsys):
    broken = ["--set", "model_settings.broken=true"]
    assert here.tune("run.toml", "--study", "s", "--trials", "2", *broken) == 1
    assert "no trial has finished (2 failed)" in capsys.readouterr().out


@pytest.mark.process
def test_a_study_whose_trials_all_fail_stops_early_and_says_why(here, capsys):
    broken = ["--set", "model_settings.broken=true"]
    assert here.tune("run.toml", "--study", "s", "--trials", "5", *broken) == 1
    told = capsys.readouterr().err
    assert "the study stops: 3 trials have failed" in told
    assert told.count("this one is broken on purpose") == 6  # as it happened, and at the end
    states = [trial.state for trial in open_study("s").stages[0].trials]
    assert states == ["failed"] * 3 + ["waiting"] * 2
    # Whoever has mended it types the same again.
    text = (here.folder / "bowl.py").read_text()
    here.write("bowl.py", text.replace("if settings.broken:", "if False:"))
    process = here.start("--study", "s")
    assert process.wait() == 0, process.stdout.read()
    assert [trial.state for trial in open_study("s").stages[0].trials][3:] == ["finished"] * 2


def test_a_sampler_that_gives_no_values_is_no_fault_of_the_trial(here, capsys):
    # Optuna takes the name and finds out with the first trial that a package is missing.
    pytest.importorskip("optuna")
    if importlib.util.find_spec("cmaes") is not None:
        pytest.skip("cmaes is installed")
    two = here.space + '[tune.space."optimizer.learning_rate"]\nlow = 0.1\nhigh = 0.2\n'
    here.write("run.toml", here.run, two.replace("[tune]", '[tune]\nsampler = "CmaEsSampler"'))
    assert here.tune("run.toml", "--study", "s") == 2
    assert "cmaes" in capsys.readouterr().err


def test_an_objective_that_no_evaluation_gives_is_told_with_those_there_are(here, capsys):
    objective = '[[tune.objectives]]\nmetric = "val/deepth"'
    here.write("run.toml", here.run, here.space, objective)
    assert here.tune("run.toml", "--study", "s") == 1
    assert "did you mean 'val/depth'?" in capsys.readouterr().err


@pytest.mark.parametrize(("take", "expected"), [("best", 0), ("last", -1), ("mean", None)])
def test_which_evaluations_count(here, take, expected):
    # x = 3, so that the loss is what is left of w: it falls at every evaluation of this run.
    objective = f'[[tune.objectives]]\nmetric = "val/loss"\nmode = "max"\ntake = "{take}"'
    here.write("run.toml", here.run, here.space.replace("low = 0", "low = 3"), objective)
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    [trial] = open_study("s").stages[0].trials
    reports = [*trial.reports.values()]
    assert reports == sorted(reports, reverse=True) and len(set(reports)) == 3
    mean = sum(reports) / 3
    assert trial.values[0] == pytest.approx(mean if expected is None else reports[expected])


# ------------------------------------------------------------------------------------ bad input


def test_a_study_that_has_changed_is_refused_with_what_differs(here, capsys):
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    here.write("run.toml", here.run, here.space.replace("high = 6", "high = 7"))
    capsys.readouterr()
    assert here.tune("run.toml", "--study", "s", "--set", "length=8 steps") == 2
    told = capsys.readouterr().err
    assert "the study 's' was begun with other settings" in told
    assert 'length: "6 steps" -> "8 steps"' in told
    assert 'tune.space."model_settings.x".high: 6 -> 7' in told
    assert "ptrain tune --study s" in told
    assert here.tune("--study", "s") == 0


def test_a_name_that_is_no_study_and_nothing_to_search(here, capsys):
    assert here.tune("--study", "nobody") == 2
    assert "there is no study 'nobody'" in capsys.readouterr().err
    assert not (here.folder / "studies" / "nobody").exists()
    assert here.tune() == 2
    assert "nothing says what to search" in capsys.readouterr().err
    assert here.tune("run.toml", "--study", "../s") == 2
    assert "cannot be the name of a study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("tune.sampler=tpee", "did you mean 'tpe'?"),
        ("tune.pruner=Meadian", "Optuna has no pruner 'Meadian'"),
        ("tune.sampler_settings.n_startup=3", "unexpected keyword argument 'n_startup'"),
        ("tune.trials=0", "0 is too small"),
    ],
)
def test_a_sampler_that_optuna_does_not_have(here, capsys, setting, told):
    assert here.tune("run.toml", "--set", setting) == 2
    assert told in capsys.readouterr().err
    assert not [*(here.folder).glob("studies/*")]


def test_a_run_ignores_what_is_to_be_searched(here):
    assert main(["run", "run.toml", "--out", "runs/a"]) == 0
    assert "tune" not in tomllib.loads((here.folder / "runs/a/run.toml").read_text())
    assert main(["config", "show", "run.toml"]) == 0


def test_workers_share_the_cores_and_take_a_gpu_each(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    given = [surroundings(place, 3) for place in range(3)]
    assert [its["CUDA_VISIBLE_DEVICES"] for its in given] == ["4", "7", "4"]
    assert {its["OMP_NUM_THREADS"] for its in given} == {str(max(1, cores // 3))}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert surroundings(0, 3) == {}
