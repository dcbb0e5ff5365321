"""`ptrain study`: what it lists and shows, the winner that it prints, writes and draws."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main

from .studies_made import LOSS_AND_DEPTH, make_study, trial

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def ptrain(capsys):
    """Call `ptrain study`; returns the exit code, standard output and standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(["study", *args]), *capsys.readouterr()

    return call


@pytest.fixture
def mixed(here):
    """A study with a trial of each kind."""
    return make_study(
        "mixed",
        [
            trial(5.0, params={"model_settings.x": 1.0}),
            trial(state="failed", params={"model_settings.x": 9.0}, reason="the loss is NaN"),
            trial(2.5, params={"model_settings.x": 2.0}, reports=[4.0, 3.0, 2.5]),
            trial(state="pruned", params={"model_settings.x": 7.0}, reports=[20.0, 16.0], steps=4),
            trial(state="waiting"),
        ],
    )


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# -------------------------------------------------------------------------------------------- list


def test_with_no_study_it_says_how_to_start_one(ptrain):
    code, out, _ = ptrain()
    assert code == 0
    assert "there is no study" in out
    assert "ptrain tune" in out


@pytest.mark.usefixtures("mixed")
def test_studies_are_listed_with_how_far_they_are(ptrain):
    make_study("all", [trial(1.0), trial(2.0)], total=2)
    make_study("staged", stages={"first": [trial(3.0)], "second": [trial(state="failed")]})
    make_study("vain", [trial(state="failed")], total=1)
    _, out, _ = ptrain("list")
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert list(rows) == ["all", "mixed", "staged", "vain"]
    assert "2/2" in rows["all"]
    assert "done" in rows["all"]
    assert "val/loss 1 (trial 0)" in rows["all"]
    assert "4/10" in rows["mixed"]
    assert "stopped" in rows["mixed"]
    assert "1/10 of second" in rows["staged"]
    assert "1/1" in rows["vain"] and "no result" in rows["vain"] and "done" not in rows["vain"]


@pytest.mark.usefixtures("mixed")
def test_a_study_that_cannot_be_read_hides_no_other(ptrain):
    (make_study("damaged", [trial(1.0)]) / "study.db").unlink()
    code, out, _ = ptrain("list")
    assert code == 0
    assert "has no study.db" in " ".join(out.split())
    assert "val/loss 2.5" in out


DAMAGES = {
    "a step of text": "UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE key = 'steps'",
    "a list as folder": "UPDATE trial_user_attributes SET value_json = '[5]' WHERE key = 'folder'",
    "no JSON": "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'steps'",
    "an unknown distribution": 'UPDATE trial_params SET distribution_json = \'{"name": "x"}\'',
    "a distribution of a number": "UPDATE trial_params SET distribution_json = '5'",
    "no values": "DELETE FROM trial_values",
    "an unknown state": "UPDATE trials SET state = 'ODD'",
    "a value of text": "UPDATE trial_values SET value = 'x'",
    "no study": "UPDATE study_user_attributes SET value_json = '5'",
    "a stage of nothing": "UPDATE study_user_attributes SET value_json = "
    'replace(value_json, \'"stage": ""\', \'"stage": null\')',
    "a start of text": "UPDATE study_user_attributes SET value_json = "
    'replace(value_json, \'"start": {}\', \'"start": "x"\')',
    "half a character": "UPDATE study_user_attributes SET value_json = "
    "replace(value_json, 'bowl/net', '\\ud800')",
    "a study of nothing": 'UPDATE study_user_attributes SET value_json = \'{"study": "odd"}\'',
    "settings of a list": "UPDATE study_user_attributes SET value_json = "
    '\'{"study": "odd", "stage": "", "settings": [], "start": {}, "total": 1}\'',
    "a total of text": "UPDATE study_user_attributes SET value_json = "
    'replace(value_json, \'"total": 10\', \'"total": "x"\')',
}


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_database_that_holds_odd_values_is_said(damage, ptrain, capsys):
    folder = make_study("odd", [trial(1.0, params={"model_settings.x": 1.0}, folder="0000")])
    with sqlite3.connect(folder / "study.db") as database:
        assert database.execute(damage).rowcount > 0
    database.close()
    for command in (["study", "show"], ["study", "best"], ["tune", "--trust", "--study"]):
        code = main([*command, "odd"])
        err = capsys.readouterr().err
        assert code == 2 and err.startswith("error: ") and "odd" in err
        assert "internal error" not in err
    code, out, _ = ptrain("list")
    assert code == 0 and "val/loss 2.5" in out and "odd" in out


@pytest.mark.usefixtures("mixed")
def test_a_list_for_programs_counts_the_trials(ptrain):
    _, out, _ = ptrain("list", "--json")
    (only,) = json.loads(out)
    (stage,) = only["stages"]
    assert stage["trials"] == {"waiting": 1, "finished": 2, "pruned": 1, "failed": 1}
    assert stage["best"] == {"trial": 2, "values": {"val/loss": 2.5}}


# -------------------------------------------------------------------------------------------- show


@pytest.mark.usefixtures("mixed")
def test_each_trial_that_was_begun_is_shown_with_what_came_of_it(ptrain):
    code, out, _ = ptrain("show", "mixed")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert rows == [
        ["0", "finished", "5", "6", "1"],
        ["1", "failed", "6", "9"],
        ["2", "finished", "2.5", "6", "2"],
        ["3", "pruned", "16", "4", "7"],
    ]
    assert "trial 1 failed  the loss is NaN" in out
    assert "4 of 10 trials are done" in out
    assert "the winner: trial 2, val/loss 2.5" in out
    assert "ptrain tune --study mixed" in out
    assert widest(out) <= 80


def test_many_parameters_with_long_names_fit_a_terminal(ptrain):
    params = {f'optimizer.groups."encoder.layer.{n}.*".learning_rate': 0.123456 for n in range(9)}
    make_study("wide", [trial(1.0, params=params)])
    _, out, _ = ptrain("show", "wide")
    assert widest(out) <= 80
    assert "encoder.layer.8" in out


def test_heads_stand_on_two_lines_where_one_would_be_too_wide(ptrain):
    params = {"optimizer.learning_rate": 0.1, "model_settings.initial_depth": 4.5}
    params["optimizer.weight_decay"] = 0.01
    make_study("both", [trial(1.0, 2.0, params=params)], objectives=LOSS_AND_DEPTH)
    _, out, _ = ptrain("show", "both")
    at = out.splitlines().index(next(line for line in out.splitlines() if "learning_" in line))
    upper, lower, values = out.splitlines()[at : at + 3]
    assert upper.index("learning_") == lower.index("rate") == values.index("0.1")
    assert upper.index("initial_") == lower.rindex("depth") == values.index("4.5")
    assert widest(out) <= 80


def test_a_staged_study_is_shown_stage_by_stage(ptrain):
    make_study(
        "staged",
        stages={"heads": [trial(3.0), trial(2.0)], "tau": [trial(state="failed", reason="no")]},
    )
    _, out, _ = ptrain("show", "staged")
    heads, tau = out.index("stage heads"), out.index("stage tau")
    assert heads < out.index("the winner: trial 1, val/loss 2") < tau < out.index("trial 0 failed")


@pytest.mark.usefixtures("mixed")
def test_a_study_for_programs_has_every_trial_whole(ptrain):
    _, out, _ = ptrain("show", "mixed", "--json")
    (stage,) = json.loads(out)["stages"]
    assert [one["state"] for one in stage["trials"]] == [
        *("finished", "failed", "finished", "pruned", "waiting")
    ]
    assert stage["trials"][2]["reports"] == {"1": 4.0, "2": 3.0, "3": 2.5}
    assert stage["trials"][1]["reason"] == "the loss is NaN"
    assert stage["winner"] == 2


# -------------------------------------------------------------------------------------------- best


def pasted(out: str) -> list[str]:
    """The arguments that a shell makes of the --set lines behind a command."""
    lines = [line for line in out.splitlines() if line.startswith("    --set ")]
    command = "printf '%s\\n' \\\n" + "\n".join(lines)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.process
def test_the_winners_lines_are_what_a_shell_gives_to_a_run(ptrain):
    from plugin_trainer.settings.layers import from_assignments, look_up

    group = 'optimizer.groups."encoder.*".learning_rate'
    kind = 'it\'s $HOME "x"'
    params = {"model_settings.x": 0.1 + 0.2, group: 3e-05, "model_settings.kind": kind}
    make_study("quoted", [trial(1.0, params=params)])
    _, out, _ = ptrain("best", "quoted")
    arguments = pasted(out)
    assert arguments[::2] == ["--set"] * 3
    values = from_assignments(arguments[1::2]).values
    assert look_up(values, ("model_settings", "x")) == 0.1 + 0.2
    assert look_up(values, ("model_settings", "kind")) == kind
    assert look_up(values, ("optimizer", "groups", "encoder.*", "learning_rate")) == 3e-05


def test_the_winner_of_a_search_is_a_run_file_that_trains(here, ptrain):
    assert here.tune("run.toml", "--study", "bowl", "--trials", "4") == 0
    code, out, _ = ptrain("best", "bowl")
    assert code == 0
    assert "studies/bowl/history.png" in out
    assert Path("studies/bowl/history.png").read_bytes().startswith(b"\x89PNG")
    _, shown, _ = ptrain("show", "bowl", "--json")
    (stage,) = json.loads(shown)["stages"]
    losses = [one["values"]["val/loss"] for one in stage["trials"]]
    assert stage["winner"] == losses.index(min(losses))
    x = stage["trials"][stage["winner"]]["params"]["model_settings.x"]
    assert main(["run", "studies/bowl/best.toml", "--out", "again"]) == 0
    assert tomllib.loads(Path("again/run.toml").read_text())["model_settings"]["x"] == x
    metrics = json.loads(Path("again/run.json").read_text())["metrics"]
    assert metrics["val/loss"] == pytest.approx(min(losses), rel=1e-6)


@pytest.fixture
def front(here):
    """A study of two objectives: trials 0, 2 and 3 are the front."""
    return make_study(
        "front",
        [
            trial(1.0, 5.0, params={"model_settings.x": 1.0}),
            trial(3.0, 5.5, params={"model_settings.x": 2.0}),
            trial(2.0, 3.0, params={"model_settings.x": 3.0}),
            trial(4.0, 1.0, params={"model_settings.x": 4.0}),
            trial(state="failed", reason="no"),
        ],
        objectives=LOSS_AND_DEPTH,
    )


@pytest.mark.process
def test_of_two_objectives_the_front_is_shown_and_drawn(front, ptrain):
    _, out, _ = ptrain("best", "front")
    assert [line.split()[0] for line in out.splitlines() if line[:1].isdigit()] == ["0", "2", "3"]
    assert pasted(out) == ["--set", "model_settings.x=1.0"]
    assert "--trial N" in out
    assert (front / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
def test_another_trial_of_the_front_can_be_chosen(front, ptrain):
    _, out, _ = ptrain("best", "front", "--trial", "3")
    assert pasted(out) == ["--set", "model_settings.x=4.0"]
    best = tomllib.loads((front / "best.toml").read_text())
    assert best["model_settings"]["x"] == 4.0


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize(("number", "what"), [("4", "is failed"), ("17", "does not exist")])
def test_a_trial_that_did_not_finish_cannot_be_chosen(number, what, ptrain):
    code, _, err = ptrain("best", "front", "--trial", number)
    assert code == 2
    assert what in err
    assert "finished are: 0, 1, 2, 3" in err


@pytest.fixture
def staged(here):
    """A study of three stages, the last without a winner."""
    return make_study(
        "staged",
        stages={
            "heads": [trial(3.0, params={"model_settings.width": 8})],
            "rate": [trial(2.0, params={"model_settings.x": 0.5})],
            "tau": [],
        },
        starts={"rate": {"model_settings.width": 8}},
    )


@pytest.mark.process
def test_the_winner_of_a_stage_has_the_values_of_the_stages_before(staged, ptrain):
    _, out, _ = ptrain("best", "staged")
    assert "stage rate" in out
    assert "no trial has finished yet of: tau" in out
    assert pasted(out) == ["--set", "model_settings.width=8", "--set", "model_settings.x=0.5"]
    best = tomllib.loads((staged / "best.toml").read_text())
    assert best["model_settings"] == {"width": 8, "x": 0.5}
    assert (staged / "rate" / "history.png").is_file()


@pytest.mark.process
@pytest.mark.usefixtures("staged")
def test_an_earlier_stage_can_be_asked_for(ptrain):
    _, out, _ = ptrain("best", "staged", "--stage", "heads")
    assert pasted(out) == ["--set", "model_settings.width=8"]
    code, _, err = ptrain("best", "staged", "--stage", "rats")
    assert code == 2
    assert "heads, rate, tau" in err


@pytest.mark.usefixtures("front")
def test_the_winner_for_programs(ptrain):
    _, out, _ = ptrain("best", "front", "--json")
    found = json.loads(out)
    assert found["trial"] == 0
    assert found["set"] == ["model_settings.x=1.0"]
    assert found["front"] == [0, 2, 3]
    assert Path(found["run_file"]).is_file()
    assert all(Path(picture).is_file() for picture in found["pictures"])


@pytest.mark.process
@pytest.mark.usefixtures("mixed")
def test_without_matplotlib_the_winner_is_told_and_what_to_install(ptrain, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = ptrain("best", "mixed")
    assert code == 0
    assert pasted(out) == ["--set", "model_settings.x=2.0"]
    assert "plugin-trainer[tune]" in out


@pytest.mark.usefixtures("mixed")
def test_no_picture_is_drawn_for_one_who_wants_none(ptrain):
    ptrain("best", "mixed", "--no-pictures")
    assert not list(Path("studies/mixed").glob("*.png"))


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("command", ["show", "best"])
def test_no_such_study_names_those_there_are(command, ptrain):
    code, _, err = ptrain(command, "missing")
    assert code == 2
    assert "no study 'missing'" in err
    assert "mixed" in err


def test_a_study_without_a_finished_trial_has_no_winner(ptrain):
    make_study("young", [trial(state="failed", reason="no"), trial(state="waiting")])
    code, _, err = ptrain("best", "young")
    assert code == 2
    assert "no finished trial yet" in err
    assert "1 of 10 trials are done (1 waiting, 1 failed)" in err
    assert "ptrain study show young" in err
    assert not Path("studies/young/best.toml").exists()


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/study.db", "postgresql://ann:hunter2@127.0.0.1:1/studies"]
)
@pytest.mark.parametrize("command", [["list"], ["show", "mixed"], ["best", "mixed"]])
def test_a_database_that_cannot_be_reached_is_told_shortly(command, url, ptrain):
    code, out, err = ptrain(*command, "--storage", url)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 4
    assert "Traceback" not in out + err
    assert "hunter2" not in out + err


@pytest.mark.usefixtures("mixed")
def test_the_database_may_stand_before_the_command_or_in_the_environment(ptrain, monkeypatch):
    url = "sqlite:///studies/mixed/study.db"
    Path("studies/mixed/study.toml").unlink()  # as on a machine that only knows the database
    assert ptrain("show", "mixed")[0] == 2
    assert "val/loss 2.5" in ptrain("--storage", url, "show", "mixed")[1]
    assert "mixed" in ptrain("--storage", url)[1]
    monkeypatch.setenv("PTRAIN_STORAGE", url)
    assert "val/loss 2.5" in ptrain("show", "mixed")[1]


@pytest.mark.process
@pytest.mark.parametrize("args", [["study", "--help"], ["study", "best", "--help"]])
def test_help_imports_neither_optuna_nor_matplotlib(args):
    program = (
        "import sys; from plugin_trainer.cli.main import main\n"
        f"code = main({args!r})\n"
        "heavy = {'optuna', 'matplotlib', 'sqlalchemy', 'torch', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "STUDY" in done.stdout


def test_every_command_that_is_printed_can_be_typed(ptrain):
    make_study("an odd name", [trial(1.0, params={"model_settings.x": 1.0})])
    _, out, _ = ptrain("best", "an odd name")
    command = next(line for line in out.splitlines() if line.startswith("train it:"))
    assert shlex.split(command.removeprefix("train it: ")) == [
        *("ptrain", "run", "studies/an odd name/best.toml")
    ]
