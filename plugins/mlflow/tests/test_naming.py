"""Names and values come out as MLflow takes them; its own checks say so."""

from __future__ import annotations

import pytest
from mlflow.utils import validation
from ptrain_mlflow.mirror import _settings_of
from ptrain_mlflow.naming import NAME_LENGTH, name_for, parameter, without_password

NAMES = [
    "train/loss",
    "val_ema/f1@5",
    "val//loss",
    "/absolute",
    "../up",
    "a/../b",
    "a/./b",
    ".",
    "..",
    "",
    "größe/Ω",
    "optimizer.groups.encoder.*.learning_rate",
    "x" * 400,
    "with space:colon",
    "trailing/",
]


@pytest.mark.parametrize("name", NAMES)
def test_mlflow_takes_every_name(name):
    taken = name_for(name)
    validation._validate_metric_name(taken)
    validation._validate_param_name(taken)
    validation._validate_tag_name(taken)
    assert taken


@pytest.mark.parametrize("name", ["train/loss", "val/a/b.c", "größe/Ω", "seconds/data", "a b:c-d"])
def test_a_name_that_it_takes_stays_as_it_is(name):
    assert name_for(name) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("val/f1@5", "val/f1_5"),
        ("val/f1@5", "val/f1%5"),
        ("x" * 260 + "a", "x" * 260 + "b"),
        ("/a", "_a"),
        ("a//b", "a__b"),
        ("..", "__"),
        ("", "_"),
        ("\ud800", "_"),
    ],
)
def test_two_names_stay_two(one, other):
    assert name_for(one) != name_for(other)
    assert len(name_for(one)) <= NAME_LENGTH and name_for(name_for(one)) == name_for(one)


def test_a_dot_in_quotes_is_no_dot_between_settings(tmp_path):
    text = '[model_settings."a.b"]\nc = 1\n[model_settings.a.b]\nc = 2\n'
    (tmp_path / "run.toml").write_text(text)
    assert sorted(_settings_of(tmp_path).values()) == ["1", "2"]


@pytest.mark.parametrize(
    ("value", "text"),
    [("linear", "linear"), (3e-5, "3e-05"), (True, "true"), (["a", 1], '["a", 1]'), ("", "")],
)
def test_a_parameter_is_what_the_run_file_has(value, text):
    assert parameter(value) == text


def test_a_long_parameter_is_cut():
    assert len(parameter("x" * 9000)) == validation.MAX_PARAM_VAL_LENGTH
    assert parameter("x" * 9000).endswith("x...")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:p:w@host/x", "postgresql://me:***@host/x"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("50 % of 3:4@5", "50 % of 3:4@5"),
    ],
)
def test_a_password_is_hidden(uri, shown):
    assert without_password(uri) == shown
