"""Every mistake in a settings table is found at once, and says where and what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from plugin_trainer.settings import RunSettings
from plugin_trainer.settings.layers import Layer, merge, read_toml
from plugin_trainer.settings.toml_lines import join_key
from plugin_trainer.settings.validation import unknown, validate


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: Annotated[float, Field(gt=0)] = 0.1
    pair: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Outer:
    needed: int
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    choice: Literal["first", "second"] = "first"
    names: tuple[str, ...] = ()
    either: int | tuple[int, ...] = 0
    free: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.needed == 13:
            raise ValueError("13 is unlucky")


def mistakes(values, cls=Outer) -> list[str]:
    _, problems = validate(cls, values, place_of=lambda key: join_key(key))
    assert all(problem.where == problem.key for problem in problems)
    return [f"{problem.key}: {problem.text}" for problem in problems]


def test_right_values_make_an_instance_of_the_dataclass():
    instance, problems = validate(
        Outer, {"needed": 3, "inner": {"rate": 2}}, place_of=lambda key: ""
    )
    assert problems == []
    assert instance == Outer(needed=3, inner=Inner(rate=2.0))


def test_a_wrong_table_makes_no_instance():
    assert validate(Outer, {}, place_of=lambda key: "")[0] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needed: is required"),
        ({"needed": 1, "inner": {"rat": 1}}, "inner.rat: no such key; did you mean 'rate'?"),
        ({"needed": 1, "maybe": {"rat": 1}}, "maybe.rat: no such key; did you mean 'rate'?"),
        (
            {"needed": 1, "zzz": 1},
            "zzz: no such key; there are: choice, either, free, inner, maybe, names, needed",
        ),
        ({"needed": 1, "choice": "secnd"}, "choice: 'secnd' is not one of first, second "),
        ({"needed": 1, "inner": {"rate": 0}}, "inner.rate: 0 is not right: input should be great"),
        ({"needed": 1, "maybe": {"rate": 0}}, "maybe.rate: 0 is not right: input should be great"),
        ({"needed": "many"}, "needed: 'many' is not right: input should be a valid integer"),
        ({"needed": 1, "inner": {"pair": [1, "x"]}}, "inner.pair.1: 'x' is not right: input shou"),
        ({"needed": 1, "names": ["a", 3]}, "names.1: 3 is not right: input should be a valid str"),
        ({"needed": 1, "names": "a"}, "names: 'a' is not right: input should be a valid tuple"),
        ({"needed": 1, "inner": 3}, "inner: 3 is not right: input should be "),
        ({"needed": 13}, "13 is unlucky"),
    ],
)
def test_a_mistake_is_named_by_its_dotted_key(values, message):
    (found,) = mistakes(values)
    assert found.removeprefix(": ").startswith(message)


def test_a_value_that_fits_no_member_of_a_union_is_named_by_its_own_key():
    assert {line.partition(":")[0] for line in mistakes({"needed": 1, "either": "x"})} == {"either"}


def test_a_choice_suggests_the_nearest():
    assert mistakes({"needed": 1, "choice": "secnd"}) == [
        "choice: 'secnd' is not one of first, second (did you mean 'second'?)"
    ]


def test_all_mistakes_are_found_at_once():
    found = mistakes(
        {"wat": 1, "inner": {"rate": -1, "pair": [1], "x": 0}, "choice": "third", "names": [1]}
    )
    assert sorted(line.partition(":")[0] for line in found) == [
        *("choice", "inner.pair.1", "inner.rate", "inner.x", "names.0", "needed", "wat"),
    ]


def test_the_text_for_an_unknown_name_depends_on_what_is_known():
    assert unknown("los", ["loss"], what="metric") == "no such metric; did you mean 'loss'?"
    assert unknown("zzz", ["b", "a"], what="key") == "no such key; there are: a, b"
    assert unknown("zzz", [], what="key") == "no such key; there are none"


# ---------------------------------------------------------------------------- a run's own settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("length", 3, '3 has no unit: write "500 steps" or "1 epoch"'),
        ("length", "10 %", '\'10 %\' cannot be given in %: write "500 steps" or "1 epoch"'),
        ("evaluate", "1 fortnight", "'fortnight' in '1 fortnight' is not a unit: write"),
        ("keep", 0, '0 is not "all" or a number of checkpoints, 1 or more'),
        ("keep", "some", "'some' is not \"all\" or a number of checkpoints, 1 or more"),
        ("keep", True, 'True is not "all" or a number of checkpoints, 1 or more'),
        ("precision", "bf61", "'bf61' is not one of fp32, bf16 (did you mean 'bf16'?)"),
        ("accumulate", 0, "0 is not right: input should be greater than or equal to 1"),
        ("accumulate", True, "true is not a number"),
        ("optimizer", {"weight_decay": False}, "false is not a number"),
        ("seed", -1, "-1 is not right: input should be greater than or equal to 0"),
        ("batch_size", 2.5, "2.5 is not right: input should be a valid integer, got a number"),
        ("optimizer", {"learning_rate": "fast"}, "'fast' is not right: input should be a valid"),
        ("optimizer", {"learning_rate": float("nan")}, "nan is not right: "),
        ("optimizer", {"learning_rate": float("inf")}, "inf is not right: "),
        ("optimizer", {"no_decay": 3}, '3 is not "auto", "none" or a list of name patterns'),
        ("optimizer", {"no_decay": "atuo"}, '\'atuo\' is not "auto", "none" or a list of name pat'),
        ("schedule", {"warmup": "ten %"}, "'ten %' is not a number with a unit: write"),
        ("ema", {"decay": 1}, "1 is not right: input should be less than 1"),
        ("ema", True, "True is not right: "),
        ("best", {"mode": "lowest"}, "'lowest' is not one of min, max"),
        ("callback_settings", {"early_stopping": 3}, "3 is not right: input should be a valid"),
    ],
)
def test_a_mistake_in_a_runs_settings_is_one_line(key, value, message):
    (found,) = mistakes({key: value}, RunSettings)
    assert found.startswith(key)
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"keep": "all"}, "keep", "all"),
        ({"keep": "4"}, "keep", 4),
        ({"ema": False}, "ema", None),
        ({"evaluate": "never"}, "evaluate", None),
        ({"callbacks": ["a", "-b"]}, "callbacks", ("a", "-b")),
    ],
)
def test_a_runs_settings_take_what_the_documentation_says(values, key, expected):
    instance, problems = validate(RunSettings, values, place_of=lambda key: "")
    assert problems == []
    assert getattr(instance, key) == expected


RUN_FILE = """length = 3
optimiser = 1

[optimizer]
learning_rate = -1
settings = [
]

[schedule]
warmup = "x"
"""


def test_each_mistake_has_the_line_it_stands_on(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(RUN_FILE)
    merged = merge([read_toml(file), Layer("--set", {"seed": "a"})])
    _, problems = validate(RunSettings, merged.values, place_of=merged.place_of)
    assert {
        (problem.where.replace(str(file), "run.toml"), problem.key) for problem in problems
    } == {
        ("run.toml:1", "length"),
        ("run.toml:2", "optimiser"),
        ("run.toml:5", "optimizer.learning_rate"),
        ("run.toml:6", "optimizer.settings"),
        ("run.toml:10", "schedule.warmup"),
        ("--set", "seed"),
    }
