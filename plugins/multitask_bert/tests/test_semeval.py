"""The files of SemEval-2010 task 8, and the marks in a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from ptrain_multitask_bert.marks import check_marks, without_marks
from ptrain_multitask_bert.semeval import read_semeval

from plugin_trainer.data.texts.reading import Row
from plugin_trainer.errors import DataError

ONE = '1\t"The <e1>child</e1> said "no" in the <e2>cradle</e2>."\r\nOther\r\nComment:\r\n\r\n'
TWO = '2\t"A <e1>fire</e1> from <e2>fuel</e2>."\nCause-Effect(e2,e1)\nComment: so it is.\n'


def read(folder: Path, content: str) -> list[Row]:
    path = folder / "TRAIN.TXT"
    path.write_text(content, encoding="utf-8", newline="")
    return read_semeval(path, key="data_settings.tasks.pairs.train", table="t")


def test_sentences_and_their_relations(tmp_path: Path) -> None:
    rows = read(tmp_path, ONE + TWO)
    assert [(row.text, row.label, row.line) for row in rows] == [
        ('The <e1>child</e1> said "no" in the <e2>cradle</e2>.', "Other", 1),
        ("A <e1>fire</e1> from <e2>fuel</e2>.", "Cause-Effect(e2,e1)", 5),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('1\t"one"\n\n2\t"two"\nOther\n', "TRAIN.TXT:1: no relation after the sentence"),
        ('1\t"one"\nOther\n2\t"two"\n', "TRAIN.TXT:3: no relation after the sentence"),
        ("Other\n", "TRAIN.TXT:1: a relation without a sentence: 'Other'"),
        ('1\t"one\nOther\n', "TRAIN.TXT:1: a relation without a sentence"),
        ("", "TRAIN.TXT is empty"),
        ("\n", "TRAIN.TXT holds no sentence"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no marks", "a:1: no <e1> and no </e1> and no <e2> and no </e2> in 'no marks'"),
        ("<e1>a</e1> <e2>b", "a:1: no </e2> in '<e1>a</e1> <e2>b'"),
        ("<e1>a</e1> <e2>b</e2> <e1>", "a:1: <e1> comes more than once"),
        ("<e1>a <e2>b</e1> c</e2>", "a:1: <e1> is followed by <e2>"),
        ("</e1>a<e1> <e2>b</e2>", "a:1: </e1> is followed by <e1>"),
        ("<e1> </e1> <e2>b</e2>", "a:1: nothing between <e1> and </e1>"),
    ],
)
def test_marks_that_are_not_as_they_must_be(text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        check_marks(text, at="a:1")
    assert caught.value.message.startswith(said)
    assert "mark both spans" in caught.value.hint[0]


def test_either_span_may_come_first() -> None:
    check_marks("<e2>b</e2> and <e1>a</e1>", at="a:1")
    assert without_marks("<e2>b</e2> and <e1>a</e1>") == "b and a"
