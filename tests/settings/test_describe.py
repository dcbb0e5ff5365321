"""The meaning of each setting is read from its dataclass's docstring, once."""

from __future__ import annotations

from dataclasses import dataclass, field

from plugin_trainer.settings.describe import describe, docstring_entries, summary
from plugin_trainer.settings.schema import RunSettings


@dataclass
class Undocumented:
    width: int = 3


@dataclass
class Documented:
    """What is set here,
    and why.

    needed   a number
    names    the first line,
             and the second
    a_name_that_is_longer_than_the_column
             its meaning,
             on two lines
    one, two  both of them

    Not a key: this sentence.
    """

    needed: int
    names: tuple[str, ...] = ("a",)
    a_name_that_is_longer_than_the_column: bool = True
    one: dict = field(default_factory=dict)
    two: Undocumented = field(default_factory=Undocumented)


def test_each_key_has_the_lines_that_belong_to_it():
    assert {key.key: key.meaning for key in describe(Documented)} == {
        "needed": "a number",
        "names": "the first line, and the second",
        "a_name_that_is_longer_than_the_column": "its meaning, on two lines",
        "one": "both of them",
        "two": "both of them",
    }


def test_a_word_alone_on_its_line_is_no_key():
    assert docstring_entries("Sentence.\n\nword\n\nkey  meaning\nalone") == {"key": "meaning"}


def test_defaults_are_given_as_toml_has_them():
    found = {key.key: (key.default, key.value, key.required) for key in describe(Documented)}
    assert found == {
        "needed": ("", None, True),
        "names": ('["a"]', ["a"], False),
        "a_name_that_is_longer_than_the_column": ("true", True, False),
        "one": ("{}", None, False),
        "two": ("", None, False),
    }


def test_a_class_without_a_docstring_says_nothing():
    assert describe(Undocumented)[0].meaning == ""
    assert summary(Undocumented) == ""
    assert summary(Documented) == "What is set here, and why."


def test_a_key_of_a_run_that_is_longer_than_its_column_has_its_meaning():
    (found,) = [key for key in describe(RunSettings) if key.key == "activation_checkpointing"]
    assert found.meaning.startswith("compute activations again in the backward pass")
