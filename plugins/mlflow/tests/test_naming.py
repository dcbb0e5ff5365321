"""Names and values come out as MLflow takes them; its own checks say so."""

from __future__ import annotations

import pytest
from mlflow.utils import validation
from ptrain_mlflow.naming import name_for, parameter, without_password

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
