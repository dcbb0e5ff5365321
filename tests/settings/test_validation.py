"""Every mistake in a settings table is found at once, and says where and what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from plugin_trainer.settings import BestSettings, OptimizerSettings, RunSettings
from plugin_trainer.settings.layers import Layer, from_assignments, merge, read_toml
from plugin_trainer.settings.schema import CompileSettings, InitSettings
from plugin_trainer.settings.toml_lines import join_key
from plugin_trainer.settings.validation import hints_of, unknown, validate, with_texts


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
    column: str | Annotated[int, Field(ge=0)] = 0
    header: bool | Literal["auto"] = "auto"
    flag: bool = False
    file: Path = Path()
    short: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    rows: tuple[Inner, ...] = ()

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
            "zzz: no such key; there are: by_name, choice, column, either, file, flag, free, heade",
        ),
        ({"needed": 1, "choice": "secnd"}, "choice: 'secnd' is not one of first, second "),
        ({"needed": 1, "inner": {"rate": 0}}, "inner.rate: 0 is too small: it must be more than 0"),
        ({"needed": 1, "maybe": {"rate": 0}}, "maybe.rate: 0 is too small: it must be more than 0"),
        ({"needed": "many"}, "needed: 'many' is not a whole number"),
        ({"needed": "3"}, "needed: '3' is not a whole number: write it without quotes"),
        ({"needed": True}, "needed: true is not a whole number"),
        ({"needed": 1, "inner": {"pair": [1, "x"]}}, "inner.pair.1: 'x' is not a number"),
        ({"needed": 1, "inner": {"pair": [1]}}, "inner.pair: [1] is not a list of 2 numbers"),
        ({"needed": 1, "names": ["a", 3]}, "names.1: 3 is not text: write it in quotes"),
        ({"needed": 1, "names": "a"}, "names: 'a' is not a list: write [\"a\"]"),
        ({"needed": 1, "inner": 3}, "inner: 3 is not a table: write its keys under [inner]"),
        ({"needed": 1, "inner": [{}]}, "inner: [[inner]] begins a list of tables: write [inner]"),
        ({"needed": 1, "either": "x"}, "either: 'x' is not a whole number or a list of whole numb"),
        ({"needed": 1, "either": ["x"]}, "either.0: 'x' is not a whole number"),
        ({"needed": 1, "column": -1}, "column: -1 is not text or a whole number, 0 or more"),
        ({"needed": 1, "header": "yes"}, "header: 'yes' is not true or false or \"auto\""),
        ({"needed": 1, "flag": "no"}, "flag: 'no' is not true or false"),
        ({"needed": 1, "flag": "true"}, "flag: 'true' is not true or false: write it without quo"),
        ({"needed": 1, "flag": 1}, "flag: 1 is not true or false"),
        ({"needed": 1, "file": 3}, "file: 3 is not a path"),
        ({"needed": 1, "short": ["a", "b", "c"]}, "short: ['a', 'b', 'c'] is too long: it may ha"),
        ({"needed": 13}, "13 is unlucky"),
    ],
)
def test_a_mistake_is_named_by_its_dotted_key(values, message):
    (found,) = mistakes(values)
    assert found.removeprefix(": ").startswith(message)


def test_the_tables_of_a_mapping_and_of_a_list_are_checked_like_any_other():
    found = mistakes(
        {
            "needed": 1,
            "by_name": {"encoder.*": {"rat": 1, "rate": 0}, "head": 3, "a": {"b": {"rate": 1}}},
            "rows": [{"rate": 1}, {"rate": "2", "pear": 1}],
        }
    )
    assert sorted(found) == [
        "by_name.\"encoder.*\".rat: no such key; did you mean 'rate'?",
        'by_name."encoder.*".rate: 0 is too small: it must be more than 0',
        "by_name.a.b: no such key; there are: pair, rate; "
        'a name with a dot in it needs quotes: [by_name."a.b"]',
        "by_name.head: 3 is not a table: write its keys under [by_name.head]",
        "rows.1.pear: no such key; did you mean 'pair'?",
        "rows.1.rate: '2' is not a number: write it without quotes",
    ]


def test_a_missing_key_is_not_reported_where_its_value_is_wrong():
    assert mistakes({"needed": "x"}) == ["needed: 'x' is not a whole number"]


def test_what_is_said_of_a_whole_table_is_said_beside_an_unknown_key():
    assert sorted(mistakes({"needed": 13, "typo": 1}))[0] == ": 13 is unlucky"


NOT_OURS = ("valid", "instance", "input", "tuple", "dict", "integer", "string", "parse", "type")


@pytest.mark.parametrize(
    "value",
    ["x", "", 3, -1, 2.5, True, float("nan"), [], [1], ["a", [1]], {}, {"x": 1}, date(2026, 1, 2)],
    ids=str,
)
@pytest.mark.parametrize("cls", [Outer, RunSettings, OptimizerSettings, BestSettings])
def test_no_value_of_any_type_gets_an_answer_in_a_programmers_words(cls, value):
    for key in hints_of(cls):
        for line in mistakes({"needed": 1, key: value} if cls is Outer else {key: value}, cls):
            said = line.partition(": ")[2].partition("there are")[0]
            assert not set(said.replace("'", " ").split()) & set(NOT_OURS), line
            assert "\n" not in line


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [("names", "3", 3), ("word", "3", "3"), ("word", "1e3", "1e3"), ("word", "true", "true"),
     ("choice", "1", "1"), ("file", "7", "7"), ("needed", "3", 3), ("column", "3", 3)],
)  # fmt: skip
def test_a_number_typed_for_a_text_is_its_text(key, typed, expected):
    @dataclass(frozen=True, kw_only=True)
    class Texts(Outer):
        word: str = ""

    layer = from_assignments([f"{key}={typed}"])
    found = with_texts(Texts, layer.values, layer.texts)[key]
    assert found == expected and type(found) is type(expected)


def test_a_number_typed_for_a_text_in_a_table_is_its_text():
    layer = from_assignments(["best.watch=3", "optimizer.learning_rate=3", "seed=4"])
    assert with_texts(RunSettings, layer.values, layer.texts) == {
        "best": {"watch": "3"}, "optimizer": {"learning_rate": 3}, "seed": 4,
    }  # fmt: skip


def test_a_choice_suggests_the_nearest():
    assert mistakes({"needed": 1, "choice": "secnd"}) == [
        "choice: 'secnd' is not one of first, second (did you mean 'second'?)"
    ]


def test_all_mistakes_are_found_at_once():
    found = mistakes(
        {"wat": 1, "inner": {"rate": -1, "pair": [1], "x": 0}, "choice": "third", "names": [1]}
    )
    assert sorted(line.partition(":")[0] for line in found) == [
        *("choice", "inner.pair", "inner.rate", "inner.x", "names.0", "needed", "wat"),
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
        ("keep", True, 'true is not "all" or a number of checkpoints, 1 or more'),
        ("precision", "bf61", "'bf61' is not one of fp32, bf16, fp16, auto (did you mean 'bf16'?)"),
        ("accumulate", 0, "0 is too small: it must be 1 or more"),
        ("accumulate", True, "true is not a whole number"),
        ("accumulate", "3", "'3' is not a whole number: write it without quotes"),
        ("compile", "no", "'no': write true, false or a table [compile]"),
        ("compile", {"mod": "x"}, "compile.mod: no such key; did you mean 'mode'?"),
        ("init_from", 3, "3: write the folder or the name of a run, a table [init_from], or false"),
        ("init_from", {"run": "a", "chekpoint": "x"}, "did you mean 'checkpoint'?"),
        ("limit_batches", {"train": "3"}, "limit_batches.train: '3' is not a whole number: write"),
        ("activation_checkpointing", "all", "'all' is not true, false or a list of module name pa"),
        ("deterministic", "yes", "'yes' is not true or false"),
        ("optimizer", {"groups": {"*.bias": {"lr": 1}}}, 'optimizer.groups."*.bias".lr: no such'),
        ("keep", "4", "'4' is not \"all\" or a number of checkpoints, 1 or more"),
        ("optimizer", {"weight_decay": False}, "false is not a number"),
        ("seed", -1, "-1 is too small: it must be 0 or more"),
        ("batch_size", 2.5, "2.5 is not a whole number"),
        ("optimizer", {"learning_rate": "fast"}, "'fast' is not a number"),
        ("optimizer", {"learning_rate": float("nan")}, "nan is not a finite number"),
        ("optimizer", {"learning_rate": float("inf")}, "inf is not a finite number"),
        ("optimizer", {"no_decay": 3}, '3 is not "auto", "none" or a list of name patterns'),
        ("optimizer", {"no_decay": "atuo"}, '\'atuo\' is not "auto", "none" or a list of name pat'),
        ("schedule", {"warmup": "ten %"}, "'ten %' is not a number with a unit: write"),
        ("ema", {"decay": 1}, "1 is too large: it must be less than 1"),
        ("ema", True, "true is not a table: write a table [ema], or false"),
        ("best", {"mode": "lowest"}, "'lowest' is not one of min, max"),
        ("callback_settings", {"early_stopping": 3}, "3 is not a table: write its keys u"),
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
        ({"keep": 4}, "keep", 4),
        ({"compile": True}, "compile", CompileSettings()),
        ({"compile": False}, "compile", None),
        ({"init_from": "first"}, "init_from", InitSettings(run="first")),
        ({"batch_size": 32.0}, "batch_size", 32),
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
