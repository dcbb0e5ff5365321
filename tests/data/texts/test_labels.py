"""Labels: names and numbers, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin_trainer.data.texts.labels import Labels, label_names
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.errors import DataError

PATH = Path("dev.tsv")


def rows(*labels: str) -> list[Row]:
    return [Row("text", label, line=number) for number, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (("1", "0", "1"), ("0", "1")),
        (("10", "9", "0"), ("0", "9", "10")),
        (("1", "-1"), ("-1", "1")),
        (("pos", "neg", "pos"), ("neg", "pos")),
        (("2", "no"), ("2", "no")),
    ],
)
def test_names_are_in_order_and_numbers_stay_themselves(
    seen: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert label_names(seen, path=PATH) == names


def test_a_single_label_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="every row has the label 'pos'"):
        label_names(["pos", "pos"], path=PATH)


def test_a_label_for_nearly_every_row_is_none() -> None:
    texts = [f"so it is {number} and no other way than that" for number in range(40)]
    with pytest.raises(DataError) as caught:
        label_names([*texts, *["so"] * 20], path=PATH, column="answered")
    assert caught.value.message == (
        "dev.tsv: column 'answered' does not look like labels: 41 different values in 60 rows, "
        "such as 'so it is 0 and no other way...' and 'so'"
    )
    assert caught.value.hint[0] == "name the label's column with data_settings.label"


@pytest.mark.parametrize(("different", "count"), [(30, 60), (50, 50)])
def test_many_labels_are_labels(different: int, count: int) -> None:
    seen = [str(number % different) for number in range(count)]
    assert len(label_names(seen, path=PATH)) == different


def test_named_labels_are_also_given_by_number() -> None:
    labels = Labels(("neg", "pos"))
    assert labels.numbers(rows("pos", "neg", "1", "0"), path=PATH) == [1, 0, 1, 0]


def test_a_number_that_is_a_name_is_that_name() -> None:
    assert Labels(("1", "2")).numbers(rows("1", "2"), path=PATH) == [0, 1]


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (("0", "1"), "2", r"dev\.tsv:2: label 2 is outside of the range 0 to 1"),
        (("neg", "pos"), "2", r"dev\.tsv:2: label 2 is outside of the range 0 to 1"),
        (("neg", "pos"), "-1", r"dev\.tsv:2: label -1 is outside of the range 0 to 1"),
        (("neg", "pos"), "poss", r"dev\.tsv:2: unknown label 'poss'; did you mean pos\?"),
        (("1", "2"), "0", r"dev\.tsv:2: unknown label '0'"),
        (("0", "1"), "pos", r"dev\.tsv:2: unknown label 'pos'"),
    ],
)
def test_any_other_label_is_named_with_its_line(
    names: tuple[str, ...], label: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Labels(names).numbers(rows(names[0], label), path=PATH)
    assert caught.value.hint[0] == f"labels: {', '.join(names)}"


def test_all_unknown_labels_are_reported_at_once() -> None:
    with pytest.raises(DataError, match=r"dev\.tsv: 12 rows cannot be used") as caught:
        Labels(("neg", "pos")).numbers(rows("neg", *["maybe"] * 12), path=PATH)
    assert caught.value.hint[0] == "dev.tsv:2: unknown label 'maybe'"
    assert caught.value.hint[9:] == (
        "dev.tsv:11: unknown label 'maybe'",
        "and 2 more",
        "labels: neg, pos",
        "correct the row, or list the label in data_settings.labels",
    )
