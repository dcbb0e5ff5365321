"""A name is never a path, and a reference says one version or is refused."""

from __future__ import annotations

import pytest

from plugin_trainer.model_store import Store, StoreError
from plugin_trainer.model_store.names import (
    Reference,
    check_alias,
    check_name,
    check_tag,
    parse_reference,
)

LEAVING = [
    "../x",
    "a/b",
    "a\\b",
    "C:x",
    "C:",
    "/x",
    "~",
    "",
    " ",
    ".",
    "..",
    "...",
    ".x",
    "-x",
    "a b",
]
ODD = ["a\nb", "a\n", "a\x00b", "a\x1bb", "a\u202eb", "é", "a@b", "a:b", "x" * 101]


@pytest.mark.parametrize("name", LEAVING + ODD)
def test_a_name_that_could_be_a_path_or_is_odd_is_refused(name):
    for check in (check_name, check_alias):
        with pytest.raises(StoreError, match="cannot be"):
            check(name)


@pytest.mark.parametrize("name", LEAVING + ODD)
def test_a_refused_name_leaves_nothing_behind(here, store, name):
    with pytest.raises(StoreError):
        store.register("first", name=name)
    with pytest.raises(StoreError):
        store.register("first", name="signs", aliases=[name])
    assert not store.folder.exists()


def test_control_characters_are_shown_and_not_sent_to_the_terminal():
    with pytest.raises(StoreError) as caught:
        check_name("a\x1b[2Jb")
    assert "\\x1b" in caught.value.message and "\x1b" not in caught.value.message


@pytest.mark.parametrize("name", ["a", "sst2", "SST-2_v1.0", "0", "x" * 100])
def test_ordinary_names_are_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("alias", ["3", "007", "latest"])
def test_an_alias_that_would_mislead_is_refused(alias):
    with pytest.raises(StoreError):
        check_alias(alias)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("sst2", Reference("sst2")),
        ("sst2:3", Reference("sst2", number=3)),
        ("sst2@production", Reference("sst2", alias="production")),
    ],
)
def test_a_reference_is_read_and_written_alike(text, reference):
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["sst2:", "sst2:0", "sst2:x", "sst2:-1", "sst2:٣", "sst2@", "sst2@3", ":1", "@a", "a:1@b"],
)
def test_a_reference_to_no_version_is_refused(text):
    with pytest.raises(StoreError):
        parse_reference(text)


@pytest.mark.parametrize(("key", "value"), [("", "x"), (" ", "x"), ("a\nb", "x"), ("a", "x\ny")])
def test_a_tag_is_one_printable_line(key, value):
    with pytest.raises(StoreError):
        check_tag(key, value)


def test_the_store_is_models_unless_something_names_another(here, monkeypatch):
    assert Store().folder.name == "models"
    monkeypatch.setenv("PTRAIN_MODELS", "elsewhere")
    assert Store().folder.name == "elsewhere"
    assert Store("here").folder.name == "here"
