"""CoNLL files: what is read, and what is wrong named by its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ptrain_multitask_bert.conll import read_conll
from ptrain_multitask_bert.tags import Sentence

from plugin_trainer.errors import DataError

KEY = "data_settings.tasks.names.train"


def read(folder: Path, content: str | bytes, **columns: Any) -> list[Sentence]:
    path = folder / "a.conll"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_conll(path, key=KEY, table="data_settings.tasks.names", **columns)


def plain(sentences: list[Sentence]) -> list[list[tuple[str, str]]]:
    return [list(zip(one.words, one.tags, strict=True)) for one in sentences]


def test_words_and_tags_with_tabs_or_spaces_between_and_white_space_between_sentences(
    tmp_path: Path,
) -> None:
    sentences = read(tmp_path, "Maria\tB-x\nsang O\n\t\n \nin\tO\r\nOslo\tB-y")
    assert plain(sentences) == [[("Maria", "B-x"), ("sang", "O")], [("in", "O"), ("Oslo", "B-y")]]
    assert sentences[1].places == (f"{tmp_path}/a.conll:5", f"{tmp_path}/a.conll:6")


def test_comments_with_tabs_are_left_out_and_a_tagged_number_sign_is_a_word(tmp_path: Path) -> None:
    """As GermEval 2014 has them: a number, the word, two tags."""
    path = tmp_path / "g.conll"
    lines = ["#\thttp://example.org/a [2009-10-17]", "1\tAnna\tB-PER\tO", "2\t#\tO\tO", ""]
    path.write_text("\n".join([*lines, *lines]) + "\n")
    read = read_conll(path, key="train", table="tasks.ner", tokens=1, tags=2)
    assert [sentence.words for sentence in read] == [("Anna", "#")] * 2
    plain = tmp_path / "p.conll"
    plain.write_text("#\tO\n# 5\nAnna\tB-PER\n")
    (sentence,) = read_conll(plain, key="train", table="tasks.ner")
    assert sentence.words == ("#", "Anna")


def test_four_columns_document_lines_and_comments(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- -X- O\n\n# id 7 domain=en\nMaria NNP I-NP B-x\n# NN I-NP O\n\nso RB O O\n"
    )
    assert plain(read(tmp_path, content)) == [[("Maria", "B-x"), ("#", "O")], [("so", "O")]]


@pytest.mark.parametrize("between", [" ", "\t"])
def test_a_no_break_space_is_part_of_a_word(tmp_path: Path, between: str) -> None:
    sentences = read(tmp_path, f"10\xa0000{between}B-x\nkroner{between}O\n\xa0\nin{between}O\n")
    assert plain(sentences) == [[("10\xa0000", "B-x"), ("kroner", "O")], [("in", "O")]]


def test_columns_by_position(tmp_path: Path) -> None:
    assert plain(read(tmp_path, "0 Maria B-x NNP\n", tokens=1, tags=2)) == [[("Maria", "B-x")]]


def test_a_byte_order_mark_is_no_word_wherever_it_stands(tmp_path: Path) -> None:
    content = "Maria\tB-x\n\n\ufeff\nOslo\tB-y\n".encode("utf-8-sig")
    assert plain(read(tmp_path, content)) == [[("Maria", "B-x")], [("Oslo", "B-y")]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Maria\tB-x\nsang\n", "a.conll:2: 1 fields, where the first word has 2"),
        ("Maria\nsang\tO\n", "a.conll:2: 2 fields, where the first word has 1"),
        ("Maria\t\n", "a.conll:1: no tag"),
        ("\tB-x\n", "a.conll:1: no word"),
        ("Maria\n", "a.conll:1: 'Maria' alone: no tag"),
        ("", "a.conll is empty"),
        ("\n\n", "a.conll holds no sentence"),
        (b"Mar\xefa\tO\n", "a.conll:1: byte 4 of the line is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value)


def test_broken_lines_come_together_up_to_ten(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "a\tO\n" + "b\n" * 13)
    assert caught.value.message.endswith("a.conll: 13 rows cannot be used")
    assert caught.value.hint[10] == "and 3 more"


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 7: the line has 2, counted from 0"):
        read(tmp_path, "Maria\tB-x\n", tags=7)
    with pytest.raises(DataError, match="a CoNLL file does not name its columns"):
        read(tmp_path, "Maria\tB-x\n", tags="ner")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{KEY}: .*b\.conll is not there"):
        read_conll(tmp_path / "b.conll", key=KEY, table="t")
