"""Going on with somebody's study runs none of their code: a file that must not come into being."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.tuning.studies import ATTRIBUTE, open_study


@pytest.fixture
def theirs(here, monkeypatch, tmp_path) -> Path:
    """The file that must not come into being: the plugin of somebody's study makes it."""
    marker = tmp_path / "it-ran"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    bowl = (here.folder / "bowl.py").read_text()
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    here.write("bowl.py", bowl, f"Path({str(marker)!r}).touch()")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "ours"))
    return marker


def go_on(*more: str) -> int:
    return main(["tune", "--study", "s", "--trials", "2", *more])


def test_a_study_that_names_code_is_not_gone_on_with(theirs, capsys):
    assert go_on() == 2
    said = capsys.readouterr().err
    assert "names code that is not installed" in said and "bowl.py" in said
    assert "--trust" in said
    assert not theirs.exists()
    assert len(open_study("s").stages[0].trials) == 1


def test_it_is_where_the_user_says_so_and_is_then_ones_own(theirs):
    assert go_on("--trust") == 0
    assert theirs.exists()
    assert main(["tune", "--study", "s", "--trials", "3"]) == 0
    assert [trial.state for trial in open_study("s").stages[0].trials] == ["finished"] * 3


def test_ones_own_is_gone_on_with_until_it_is_changed(here, capsys):
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    assert go_on() == 0
    about = json.loads(Path("studies/s/study.json").read_text())
    Path("studies/s/study.json").write_text(json.dumps({**about, "signature": "0" * 64}))
    assert main(["tune", "--study", "s", "--trials", "3"]) == 2
    assert "was not made by you" in capsys.readouterr().err


def test_what_a_stage_begins_with_brings_no_code_past_a_run_that_was_typed(theirs, capsys):
    study = open_study("s").stages[0].optuna
    about = study.user_attrs[ATTRIBUTE]
    study.set_user_attr(ATTRIBUTE, {**about, "start": {"loss": "evil:Thing"}})
    capsys.readouterr()
    assert go_on("run.toml") == 2
    assert "evil:Thing" in capsys.readouterr().err
