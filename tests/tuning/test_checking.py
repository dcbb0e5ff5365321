"""A search that cannot be made is refused before its first trial, every mistake at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.tuning.storage import told_shortly, without_password


def mistakes(here, capsys, *space: str) -> list[str]:
    here.write("run.toml", here.run, *space)
    assert here.tune("run.toml", "--study", "s") == 2
    told = capsys.readouterr().err
    assert not (here.folder / "studies").exists()
    return told.splitlines()


def test_every_mistake_is_told_at_once_with_its_line(here, capsys):
    told = mistakes(
        here,
        capsys,
        """
        [tune]
        trials = 3
        [tune.space."optimizer.learning_rat"]
        low = 1e-4
        high = 1e-3
        [tune.space."model_settings.width"]
        low = 0
        high = 65
        [tune.space."model_settings.x"]
        low = 2
        high = 1
        """,
    )
    text = (here.folder / "run.toml").read_text().splitlines()

    def at(line: str) -> str:
        return f"run.toml:{text.index(line) + 1}: "

    assert told[0] == "error: 4 mistakes in the settings"
    assert told[1].strip().startswith(at("low = 1e-4"))
    assert "no such key; did you mean 'learning_rate'?" in told[1]
    assert "with 0: 0 is too small" in told[2]
    assert "with 65: 65 is too large" in told[3]
    assert told[4].strip() == (
        f'{at("low = 2")}tune.space."model_settings.x".low: 2 is more than high, which is 1'
    )


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("low = 0.0\nhigh = 1.0\nlog = true", "a logarithmic scale needs more than 0"),
        ("low = 0.5\nhigh = 1.0\nstep = 0.2", "steps of 0.2 from 0.5 do not meet 1.0"),
        ("low = 0.5\nhigh = 1.0\nstep = -0.5", "-0.5 is no step"),
        ("low = 0.1\nhigh = 1.0\nstep = 0.1\nlog = true", "a logarithmic scale takes no steps"),
        ("low = 0.5", "give it low and high, or choices (high missing)"),
        ("low = 0.5\nhigh = inf", "inf is not a finite number"),
        ("choices = []", "there is nothing to choose from"),
        ("choices = [1.0, 1.0]", "1.0 is there twice"),
        ("choices = [1.0, [2.0]]", "a choice is text, a number, true or false"),
        ("choices = [1.0]\nlow = 0.0", "choices are given: take this away, or them"),
        ('choices = [1.0, "a"]', "with 'a': 'a' is not a number"),
        ('low = 0\nhigh = 1\nwhen = {"model_settings.knd" = 1}', "is no key of this space"),
        ('low = 0\nhigh = 1\nwhen = {"model_settings.kind" = "shallow"}', "is never 'shallow'"),
        ('low = 0\nhigh = 1\nwhen = {"model_settings.x" = 1}', "it waits for itself"),
        ("low = 0\nhigh = 1\nlogg = true", "did you mean 'log'?"),
        ('low = "a"\nhigh = 1', "'a' is not a whole number or a number"),
    ],
)
def test_ranges_that_cannot_be(here, capsys, table, told):
    lines = mistakes(
        here,
        capsys,
        '[tune.space."model_settings.x"]\n' + table,
        '[tune.space."model_settings.kind"]\nchoices = ["plain", "deep"]',
    )
    assert lines[0] == "error: one mistake in the settings", lines
    assert told in lines[1]
    assert lines[1].strip().startswith("run.toml:")


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ("trials = 3", "nothing says what to search"),
        ('space."a b".low = 1', "this is no key"),
        ('space."name".choices = ["a"]', "name is the same for all trials"),
        ('space."model_settings.x".choices = [1.0]\nsampler = "grid"\n'
         'space."optimizer.learning_rate" = {low = 0.1, high = 0.2}', "a grid needs a step"),
        ('objectives = [{metric = "loss"}]\nspace."seed".choices = [1, 2]',
         "did you mean 'val/loss'?"),
        ('objectives = [{metric = "train/loss"}]\nspace."seed".choices = [1, 2]',
         "is of no evaluation"),
        ('space."seed".choices = [1, 2]\n[best]\nwatch = ""', "list objectives, or set best.watch"),
        ('winner_by = "val/los"\nspace."seed".choices = [1, 2]', "did you mean 'val/loss'?"),
        ('stages = [{name = "a", space.seed.low = 1}, {name = "a", space.seed.low = 2}]',
         "there is a stage 'a' before it"),
        ('stages = [{name = "a"}]', "it has no space"),
        ('stages = [{name = "../a", space.seed.choices = [1]}]', "a name is letters"),
        ('space."seed".choices = [1]\nstages = [{name = "a", space.seed.choices = [2]}]',
         "take one of both away"),
    ],
)  # fmt: skip
def test_searches_that_cannot_be(here, capsys, tune, told):
    (here.folder / "bowl.py").write_text(
        (here.folder / "bowl.py").read_text().replace("def ptrain_spaces", "def spaces")
    )
    lines = mistakes(here, capsys, "[tune]\n" + tune)
    assert any(told in line for line in lines), lines


def test_two_conditions_in_a_circle(here, capsys):
    lines = mistakes(
        here,
        capsys,
        """
        [tune.space."model_settings.x"]
        choices = [1.0, 2.0]
        when = {"model_settings.layers" = 1}
        [tune.space."model_settings.layers"]
        choices = [1, 2]
        when = {"model_settings.x" = 1.0}
        """,
    )
    assert sum("it waits for itself" in line for line in lines) == 2


def test_a_key_of_what_only_some_trials_use_is_checked_where_it_is_used(here):
    # `momentum` is a keyword of SGD alone; a trial with AdamW does not have it.
    here.write(
        "run.toml",
        here.run,
        """
        [tune]
        sampler = "grid"
        [tune.space."optimizer.name"]
        choices = ["adamw", "SGD"]
        [tune.space."optimizer.settings.momentum"]
        choices = [0.5, 0.9]
        when = {"optimizer.name" = "SGD"}
        """,
    )
    assert here.tune("run.toml", "--study", "s", "--trials", "3") == 0


def test_config_check_and_plugins_check_look_at_what_is_searched(here, capsys):
    here.write("run.toml", here.run, here.space.replace("low = 0", "low = 7"))
    assert main(["config", "check", "run.toml"]) == 2
    assert "7 is more than high" in capsys.readouterr().err
    here.write("near.toml", here.space.replace("model_settings.x", "model_settings.y"))
    assert main(["plugins", "check", "./bowl.py"]) == 1
    assert "search space 'near': near.toml:" in capsys.readouterr().out
    assert main(["plugins", "show", "./bowl.py"]) == 0
    assert "bowl/near" in capsys.readouterr().out


def test_what_is_searched_can_be_shown_and_explained(here, capsys):
    assert main(["config", "show", "run.toml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    key = 'tune.space."model_settings.x".high'
    assert shown[key]["value"] == 6
    assert shown[key]["origin"].startswith("run.toml:")
    for name in ("tune", "tune.sampler", key):
        assert main(["config", "explain", name, "run.toml"]) == 0
    assert "the largest value" in capsys.readouterr().out
    assert main(["config", "schema", "run.toml"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "pruner_settings" in json.dumps(schema["$defs"]["TuneSettings"])


# --------------------------------------------------------------------------------- the database


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:se:cret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("mysql+pymysql://me:a%40b@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql:///db?user=me&password=secret", "postgresql:///db?user=me&password=***"),
    ],
)
def test_no_password_is_shown(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:////nobody/has/this/study.db", "unable to open database file"),
        ("postgresql+psycopg2://me:geheim@localhost/db", "psycopg2"),
        ("nonsense://me:geheim@localhost/db", "is not the URL of a database"),
        ("geheim", "is not the URL of a database"),
    ],
)
def test_a_database_that_cannot_be_reached_is_a_short_error(here, capsys, url, told):
    assert here.tune("run.toml", "--study", "s", "--storage", url) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 3
    assert told in "\n".join(lines)
    assert "me:geheim" not in "\n".join(lines)


def test_a_database_elsewhere_is_read_from_a_folder_that_is_gone(here, tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    here.folder.joinpath("empty").mkdir()
    os.chdir("empty")
    here.folder.joinpath("empty").rmdir()
    try:
        assert main(["study", "--storage", url]) == 0
        assert main(["tune", "--study", "s", "--storage", url]) == 2
    finally:
        os.chdir(here.folder)
    assert "there is no study 's'" in capsys.readouterr().err


def test_what_a_driver_says_is_told_without_the_password():
    from sqlalchemy.exc import OperationalError

    url = "postgresql://me:geheim@host/db"
    said = Exception('connection to "host" failed for me with password geheim\nmore lines')
    with pytest.raises(Exception, match="cannot be used") as caught, told_shortly(url):
        raise OperationalError("SELECT 1", {}, said)
    assert "geheim" not in str(caught.value)
    assert "connection to" in str(caught.value)
    assert "more lines" not in str(caught.value)


@pytest.mark.process
def test_a_database_that_goes_away_stops_the_study_without_failing_the_trial(here):
    url = f"sqlite:///{here.folder}/far/study.db"
    (here.folder / "far").mkdir()
    process = here.start(
        "run.toml", "--study", "s", "--trials", "1", "--storage", url, BOWL_WAIT="0000:1"
    )
    while not (here.folder / "WAIT-0000:1").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    (here.folder / "far").rename(here.folder / "gone")
    (here.folder / "go").touch()
    told, _ = process.communicate()
    assert process.returncode == 2, told
    assert "cannot be used" in told
    assert "Traceback" not in told
    (here.folder / "gone").rename(here.folder / "far")
    assert here.tune("--study", "s") == 0
    assert [step for _, step, _ in here.diary()][-1] == 6


@pytest.mark.process
def test_without_optuna_the_error_names_the_extra(here):
    program = (
        "import sys; sys.modules['optuna'] = None\n"
        "from plugin_trainer.cli.main import main\n"
        "sys.exit(main(['tune', 'run.toml']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'plugin-trainer[tune]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_help_imports_neither_optuna_nor_torch():
    program = (
        "import sys\nfrom plugin_trainer.cli.main import main\n"
        "main(['tune', '--help'])\n"
        "sys.exit(str({'optuna', 'torch', 'sqlalchemy'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == ""
