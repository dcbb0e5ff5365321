"""Finding the columns: usual names, pairs of texts, and what is ambiguous."""

from __future__ import annotations

from typing import Any

import pytest

from plugin_trainer.data.texts.columns import Columns, Found, named_columns, table_columns
from plugin_trainer.errors import DataError


def names_found(names: list[str], **columns: Any) -> tuple[str, str | None, str]:
    """(text, text_pair, label) by name."""
    found = named_columns(Columns(**columns), names=names, at="here")
    pair = None if found.text_pair is None else names[found.text_pair]
    return names[found.text], pair, names[found.label]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["idx", "sentence", "label"], ("sentence", None, "label")),
        (["text", "sentence", "label"], ("text", None, "label")),
        (["label", "Content", "title"], ("Content", None, "label")),
        (["premise", "hypothesis", "label", "idx"], ("premise", "hypothesis", "label")),
        (["sentence2", "sentence1", "label"], ("sentence1", "sentence2", "label")),
        (["question1", "question2", "label"], ("question1", "question2", "label")),
        (["question", "sentence", "label", "idx"], ("question", "sentence", "label")),
        (["passage", "question", "label"], ("question", "passage", "label")),
    ],
)
def test_the_usual_names_are_found(names: list[str], expected: tuple[str, str, str]) -> None:
    assert names_found(names) == expected


def test_a_text_asked_for_stands_alone_unless_its_pair_is_asked_for_too() -> None:
    names = ["premise", "hypothesis", "label"]
    assert names_found(names, text="hypothesis") == ("hypothesis", None, "label")
    asked = {"text": "hypothesis", "text_pair": "premise"}
    assert names_found(names, **asked) == ("hypothesis", "premise", "label")


def test_a_pair_asked_for_finds_its_partner() -> None:
    names = ["premise", "hypothesis", "text", "label"]
    assert names_found(names, text_pair="hypothesis")[:2] == ("premise", "hypothesis")
    assert names_found(["text", "context", "label"], text_pair="context")[:2] == ("text", "context")


def test_no_pair_can_be_asked_for() -> None:
    assert names_found(["question", "sentence", "label"], text_pair="")[:2] == ("sentence", None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["text", "premise", "hypothesis", "label"], "premise and hypothesis, or text"),
        (
            ["premise", "hypothesis", "sentence1", "sentence2", "label"],
            "premise and hypothesis, or sentence1 and sentence2",
        ),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_columns(names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=f"here: the texts could be {said}") as caught:
        names_found(names)
    assert f"columns: {', '.join(names)}" in caught.value.hint
    assert names_found(names, text="premise", text_pair="hypothesis")[1] == "hypothesis"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, Found(text=0, label=1, difficulty=None, text_pair=None)),
        ({"text_pair": 1}, Found(text=0, label=2, difficulty=None, text_pair=1)),
        ({"difficulty": 2}, Found(text=0, label=1, difficulty=2, text_pair=None)),
        (
            {"text": 2, "text_pair": 3, "label": 0},
            Found(text=2, label=0, difficulty=None, text_pair=3),
        ),
    ],
)
def test_a_table_without_a_header_goes_by_position(
    columns: dict[str, Any], expected: Found
) -> None:
    wanted = [expected.text, expected.text_pair, expected.label, expected.difficulty]
    cells = ["cell"] * (1 + max(position for position in wanted if position is not None))
    assert table_columns(Columns(**columns), names=None, cells=cells, at="here") == expected


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(
    ("cells", "columns"),
    [
        (["asked", "answered", "good"], {}),
        (["asked", "answered", "good"], {"label": 2}),
        (["asked", "answered", "good", "when"], {"text_pair": 1}),
        (["good", "asked"], {"label": 0}),  # the text would be the label
        (["good", "asked"], {"text": 1}),
    ],
)
def test_order_does_not_choose_among_more_columns_than_are_read(
    cells: list[str], columns: dict[str, Any], header: bool
) -> None:
    names = cells if header else None
    with pytest.raises(DataError, match="here: which columns are the text and the label") as caught:
        table_columns(Columns(**columns), names=names, cells=cells, at="here")
    said = " ".join(caught.value.hint)
    assert f'data_settings.text = "{cells[0]}"' in said
    assert f'data_settings.label = "{cells[-1]}"' in said
    assert ("data_settings.header = false" in said) is not header
