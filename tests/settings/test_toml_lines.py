"""Every key of a TOML text is found on the line it stands on."""

from __future__ import annotations

import tomllib

import pytest

from plugin_trainer.settings.toml_lines import join_key, key_lines, split_key

TEXT = '''# a comment with [brackets] and a = sign
length = "3 epochs"   # 2
optimizer.learning_rate = 1e-3

[schedule]            # 5
name = "linear"
"quoted key" = 1
'single' = 2

betas = [             # 10
  0.9,
  # not = "a key"
  0.98,
]
inline = {a = 1, b = {c = 2}}   # 15
text = """
looks = "like a key"
[like.a.table]
"""
after = true          # 20

  [callback_settings."dactbert/exit_statistics"]   # 22
  file = "x"

[a.b . c]
d.e = 1
'''


def test_each_key_is_found_on_its_line():
    assert key_lines(TEXT) == {
        ("length",): 2,
        ("optimizer", "learning_rate"): 3,
        ("schedule",): 5,
        ("schedule", "name"): 6,
        ("schedule", "quoted key"): 7,
        ("schedule", "single"): 8,
        ("schedule", "betas"): 10,
        ("schedule", "inline"): 15,
        ("schedule", "text"): 16,
        ("schedule", "after"): 20,
        ("callback_settings", "dactbert/exit_statistics"): 22,
        ("callback_settings", "dactbert/exit_statistics", "file"): 23,
        ("a", "b", "c"): 25,
        ("a", "b", "c", "d", "e"): 26,
    }


def test_the_tables_of_an_array_are_counted():
    text = "[[a]]\nx = 1\n[a.sub]\ny = 1\n[[a.deep]]\n[[a]]  # 6\nx = 2\n[[a.deep]]\nz = 1\n"
    assert key_lines(text) == {
        ("a",): 1,
        ("a", "0"): 1,
        ("a", "0", "x"): 2,
        ("a", "0", "sub"): 3,
        ("a", "0", "sub", "y"): 4,
        ("a", "0", "deep"): 5,
        ("a", "0", "deep", "0"): 5,
        ("a", "1"): 6,
        ("a", "1", "x"): 7,
        ("a", "1", "deep"): 8,
        ("a", "1", "deep", "0"): 8,
        ("a", "1", "deep", "0", "z"): 9,
    }


def test_a_line_separator_inside_a_text_does_not_shift_the_lines():
    assert key_lines('a = "one\u2028two\x85three"\nb = 1\n') == {("a",): 1, ("b",): 2}


def test_a_key_is_split_at_its_dots_and_joined_with_the_quotes_it_needs():
    assert split_key('a."b/c".d') == ("a", "b/c", "d")
    assert join_key(("a", "b/c", "d")) == 'a."b/c".d'


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('"a\\"b" = [\n[1, 2],\n[3]\n]\nc = 1', {('a"b',): 1, ("c",): 5}),
        ('a = [\n["x"],\n["y.z"]\n]\nb = 1', {("a",): 1, ("b",): 5}),
        ('["a]#b"]\nc = 1', {("a]#b",): 1, ("a]#b", "c"): 2}),
        ('[["a]]"]]\nc = 1', {("a]]",): 1, ("a]]", "0"): 1, ("a]]", "0", "c"): 2}),
        ("a = [[\n[1]\n]]\n[ b . c ]\nd = 1", {("a",): 1, ("b", "c"): 4, ("b", "c", "d"): 5}),
    ],
)
def test_rows_that_look_like_headers_and_quoted_brackets_are_told_apart(text, lines):
    tomllib.loads(text)
    assert key_lines(text) == lines


@pytest.mark.parametrize("part", ['a"b', "a\\b", "a.b", "a\tb", "", "größe"])
def test_a_joined_key_is_split_again(part):
    assert split_key(join_key((part, "x"))) == (part, "x")
