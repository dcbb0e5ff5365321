"""Reading files: what is accepted, and every way in which a file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugin_trainer.data.texts.reading import NO_TEXT, Columns, Row, read_rows
from plugin_trainer.errors import DataError

Write = Callable[..., Path]


def read(path: Path, *, header: Any = "auto", **columns: Any) -> list[Row]:
    return read_rows(path, key="data_settings.train", columns=Columns(**columns), header=header)


def pairs(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in rows]


# ----------------------------------------------------------------------------------- accepted


def test_tsv_without_a_header(write: Write) -> None:
    path = write("a.tsv", "good film\t1\ndull\t0\n")
    assert read(path) == [Row("good film", "1", line=1), Row("dull", "0", line=2)]


def test_a_header_with_the_usual_names_is_recognised_in_any_order(write: Write) -> None:
    path = write("a.tsv", "Label\tid\tSentence\n1\t7\tgood film\n")
    assert read(path) == [Row("good film", "1", line=2)]


def test_columns_by_name_and_by_position(write: Write) -> None:
    path = write("a.csv", "id,stars,body\n7,5,good film\n")
    assert pairs(read(path, text="body", label="stars")) == [("good film", "5")]
    assert pairs(read(path, text=2, label=1, header=True)) == [("good film", "5")]
    assert pairs(read(path, text=2, label=1, header=False))[0] == ("body", "stars")


def test_header_says_whether_the_first_line_is_data(write: Write) -> None:
    path = write("a.tsv", "text\tlabel\n")
    assert pairs(read(path, header=False)) == [("text", "label")]


def test_tsv_knows_no_quotes(write: Write) -> None:
    path = write("a.tsv", '"so-called" film\t1\n"an open quote\t0\n')
    assert pairs(read(path)) == [('"so-called" film', "1"), ('"an open quote', "0")]


def test_csv_quotes_commas_and_lines(write: Write) -> None:
    path = write("a.csv", '"good, really\nit ""is""",1\ndull,0\n')
    rows = read(path)
    assert pairs(rows) == [('good, really\nit "is"', "1"), ("dull", "0")]
    assert [row.line for row in rows] == [1, 3]


def test_jsonl_with_numbers_names_and_booleans_for_labels(jsonl: Write) -> None:
    path = jsonl(
        "a.jsonl",
        {"text": "a", "label": 1},
        {"text": "b", "label": "no"},
        {"text": "c", "label": True},
    )
    assert pairs(read(path)) == [("a", "1"), ("b", "no"), ("c", "true")]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(write: Write) -> None:
    path = write("a.tsv", b"\xef\xbb\xbftext\tlabel\r\ngood\t1\r\n\r\ndull\t0")
    assert read(path) == [Row("good", "1", line=2), Row("dull", "0", line=4)]


def test_a_unicode_line_separator_does_not_end_a_line(write: Write) -> None:
    path = write("a.tsv", "good\u2028film\t1\ndull\x85\t0\n")
    assert [row.line for row in read(path)] == [1, 2]


@pytest.mark.parametrize("text", ["", "  "])
def test_a_text_is_not_empty(write: Write, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.tsv:1: no text"):
        read(write("a.tsv", f"{text}\t1\ndull\t0\n"))


def test_a_difficulty_column_is_read(write: Write) -> None:
    path = write("a.csv", "text,label,hops\ngood,1,3\n")
    assert read(path, difficulty="hops") == [Row("good", "1", line=2, difficulty=3)]


# ------------------------------------------------------------------------------------- refused

WRONG: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "an empty file": ("a.tsv", "", {}, r"a\.tsv is empty"),
    "a header and nothing else": ("a.tsv", "text\tlabel\n", {}, "holds no row of data"),
    "blank lines only": ("a.jsonl", "\n\n", {}, "holds no row of data"),
    "an ending that says nothing": ("a.txt", "x\t1\n", {}, r"ends in \.txt"),
    "too few fields": ("a.tsv", "good\t1\ndull\n", {}, r"a\.tsv:2: 1 fields, where .* has 2"),
    "too many fields": ("a.csv", "good,1\nso, so,0\n", {}, r"a\.csv:2: 3 fields"),
    "an open quote": ("a.csv", 'x,1\n"good,1\ndull,0\n', {}, r"a\.csv:2: broken CSV"),
    "invalid UTF-8": ("a.tsv", b"good\t1\nd\xfcll\t0\n", {}, r"a\.tsv:2: byte 2 .* not UTF-8"),
    "invalid UTF-8 in CSV": ("a.csv", b"good,1\nd\xfcll,0\n", {}, r"a\.csv:2: byte 2"),
    "invalid JSON": (
        "a.jsonl",
        '{"text": "a", "label": 0}\n{"text"\n',
        {},
        r"a\.jsonl:2: not valid",
    ),
    "JSON that is no object": ("a.jsonl", '["a", 0]\n', {}, r"a\.jsonl:1: a JSON list"),
    "a text that is no string": ("a.jsonl", '{"text": 5, "label": 0}\n', {}, "the text is 5"),
    "no label": ("a.tsv", "good\t1\ndull\t\n", {}, r"a\.tsv:2: no label"),
    "a null label": ("a.jsonl", '{"text": "a", "label": null}\n', {}, r"a\.jsonl:1: no label"),
    "a missing key": (
        "a.jsonl",
        '{"text": "a", "label": 0}\n{"txt": "a", "label": 0}\n',
        {},
        r"a\.jsonl:2: no column 'text' for the text; did you mean txt\?",
    ),
    "an unknown column": (
        "a.csv",
        "sentence,label\ngood,1\n",
        {"text": "sentense"},
        r"a\.csv:1: no column 'sentense' for the text; did you mean sentence\?",
    ),
    "a name without a header": (
        "a.csv",
        "good,1\n",
        {"text": "body", "header": False},
        "the file has no header",
    ),
    "a position beyond the line": ("a.csv", "good,1\n", {"label": 2}, "no column 2 for the label"),
    "one column only": ("a.tsv", "good 1\ndull 0\n", {}, "no column 1 for the label"),
    "a position in JSON": ("a.jsonl", '{"text": "a"}\n', {"text": 0}, "is the position 0"),
    "a difficulty that is no number": (
        "a.csv",
        "text,label,hops\ngood,1,many\n",
        {"difficulty": "hops"},
        r"a\.csv:2: the difficulty is 'many'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_file_is_named_with_its_line(case: str, write: Write) -> None:
    name, content, options, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        read(write(name, content), **options)
    assert name in caught.value.message
    assert caught.value.exit_code == 2


def test_an_unknown_column_lists_those_seen(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read(write("a.csv", "id,body,stars\n7,good,1\n"), text="text")
    assert "columns: id, body, stars" in caught.value.hint


@pytest.mark.parametrize("name", ["missing.tsv", "folder.tsv"])
def test_a_missing_file_is_named_with_its_setting(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(DataError, match=r"data_settings\.train: .*" + name) as caught:
        read(tmp_path / name)
    assert str(tmp_path) in caught.value.hint[0]


@pytest.mark.parametrize("name", ["stanfordnlp/sst2", "rajpurkar/squad_v1.1", "imdb"])
def test_a_hub_id_for_a_file_is_answered_with_the_setting_for_it(name: str) -> None:
    with pytest.raises(DataError, match=f"data_settings.train: {name} is not there") as caught:
        read(Path(name))
    assert f'data_settings.dataset = "{name}"' in caught.value.hint[-1]


@pytest.mark.parametrize("name", ["data/train.tsv", "train.txt", "/data/train", "a/b/c", "../data"])
def test_what_cannot_be_a_hub_id_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(DataError, match=r"data_settings\.train") as caught:
        read(Path(name))
    assert "Hugging Face" not in " ".join(caught.value.hint)


# --------------------------------------------------------------------------------------- pairs


def test_a_pair_of_texts_is_read_from_every_kind_of_file(write: Write, jsonl: Write) -> None:
    row = {"premise": "it rains", "hypothesis": "it is wet", "label": "yes"}
    expected = [Row("it rains", "yes", line=2, text_pair="it is wet")]
    header, cells = list(row), list(row.values())
    for ending, mark in (("tsv", "\t"), ("csv", ",")):
        path = write(f"a.{ending}", f"{mark.join(header)}\n{mark.join(cells)}\n")
        assert read(path) == expected
    assert read(jsonl("a.jsonl", row)) == [Row("it rains", "yes", line=1, text_pair="it is wet")]


def test_a_pair_by_position(write: Write) -> None:
    path = write("a.tsv", "it rains\tit is wet\tyes\n")
    assert read(path, text_pair=1) == [Row("it rains", "yes", line=1, text_pair="it is wet")]


def test_the_second_text_must_be_a_string_too(jsonl: Write) -> None:
    path = jsonl("a.jsonl", {"premise": "it rains", "hypothesis": None, "label": 1})
    with pytest.raises(DataError, match=r"a\.jsonl:1: the text is null, not a string") as caught:
        read(path)
    assert caught.value.hint == (NO_TEXT,)


# --------------------------------------------------------------------------- all that is broken


def test_all_broken_lines_are_reported_at_once(write: Write) -> None:
    path = write("a.tsv", "good\t1\ndull\nso\tso\t0\nfine\t0\nempty\t\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == f"{path}: 3 rows cannot be used"
    assert caught.value.hint == (
        f"{path}:2: 1 fields, where the first line has 2",
        f"{path}:3: 3 fields, where the first line has 2",
        f"{path}:5: no label",
        "correct or remove the line",
        "give the row a label, or remove it",
    )


def test_of_many_broken_lines_ten_are_shown_and_all_counted(jsonl: Write) -> None:
    path = jsonl("a.jsonl", *({"text": number, "label": 0} for number in range(23)))
    with pytest.raises(DataError, match="23 rows cannot be used") as caught:
        read(path)
    assert len(caught.value.hint) == 12
    assert caught.value.hint[9] == f"{path}:10: the text is 9, not a string"
    assert caught.value.hint[10:] == ("and 13 more", NO_TEXT)


def test_what_ends_the_reading_comes_with_the_broken_lines_before_it(write: Write) -> None:
    path = write("a.tsv", b"good\t1\ndull\nd\xfcll\t0\nalso broken\n")
    with pytest.raises(DataError, match="2 rows cannot be used") as caught:
        read(path)
    assert caught.value.hint[1] == f"{path}:3: byte 2 of the line is not UTF-8"


# -------------------------------------------------------------------------------- hidden headers

ROWS = "good\t1\ndull\t0\nso so\t0\nfine\t1\n"
NAMED = "good\tpos\ndull\tneg\nso so\tneg\nfine\tpos\n"


@pytest.mark.parametrize(
    "content",
    [
        "phrase\tscore\n" + ROWS,
        "Phrase Text\tStars\n" + NAMED,
        "phrase\tlabel\ngood\tpos\ndull\tneg\n",
        "text\tverdict\ngood\tpos\ndull\tneg\n",
    ],
)
def test_a_header_that_was_not_recognised_is_not_taken_for_data(content: str, write: Write) -> None:
    path = write("a.tsv", content)
    with pytest.raises(DataError, match=r"a\.tsv:1: this looks like a header") as caught:
        read(path)
    assert "data_settings.header = false" in caught.value.hint[1]
    assert len(read(path, header=True)) == len(read(path, header=False)) - 1


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("asked,good\nis it,perhaps\nwas it,no\n", {}),
        ("what did you ask us today,good\n" + ROWS.replace("\t", ","), {}),
        ("0,1\n" + ROWS.replace("\t", ","), {}),
        ("asked,answered,good\nis it,so,1\nwas it,no,0\n", {"text_pair": 1}),
        ("asked,answered,good\nis it,so,1\nwas it,no,0\n", {"text": 0, "label": 2}),
    ],
)
def test_a_csv_file_has_a_header_unless_the_first_row_is_surely_data(
    content: str, columns: dict[str, Any], write: Write
) -> None:
    path = write("a.csv", content)
    with pytest.raises(DataError, match=r"a\.csv:1: this looks like a header") as caught:
        read(path, **columns)
    assert ("data_settings.text_pair" in caught.value.hint[0]) is ("text_pair" in columns)
    assert len(read(path, header=False, **columns)) == content.count("\n")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("header", ["auto", True, False])
def test_pairs_under_names_of_their_own_are_not_guessed(
    ending: str, header: Any, write: Write
) -> None:
    mark = {"csv": ",", "tsv": "\t"}[ending]
    rows = ["asked,answered,good", *(f"is it {n},so {n},{n % 2}" for n in range(60))]
    path = write(f"a.{ending}", "".join(f"{row.replace(',', mark)}\n" for row in rows))
    with pytest.raises(DataError, match=rf"a\.{ending}:1: which columns are the text") as caught:
        read(path, header=header)
    assert caught.value.hint[0] == 'columns: "asked", "answered", "good"'
    assert (
        'data_settings.text = "asked", data_settings.text_pair = "answered" for a pair, '
        'and data_settings.label = "good"' in caught.value.hint[1]
    )
    found = read(path, text="asked", text_pair="answered", label="good")
    assert found[0] == Row("is it 0", "0", line=2, text_pair="so 0")


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        NAMED,
        "2\t2\n" + ROWS,  # a rare label that is a number
        "mixed\tso\n" + "good\tpos\ndull\tneg\n",  # every label once: nothing tells
        "a film of many faces and moods\tmixed\n" + NAMED,  # a text, not a name
        "odd\tmixed\nfine\tmixed\n" + NAMED,
    ],
)
def test_data_are_not_taken_for_a_header(content: str, write: Write) -> None:
    assert len(read(write("a.tsv", content))) == content.count("\n")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_first_row_under_a_usual_header_may_look_like_one(ending: str, write: Write) -> None:
    content = "text\tlabel\nodd\tmixed\n" + NAMED
    content = content.replace("\t", {"csv": ",", "tsv": "\t"}[ending])
    assert len(read(write(f"a.{ending}", content))) == 5


@pytest.mark.parametrize("content", [ROWS, NAMED])
def test_a_csv_file_without_a_header_is_read_where_a_label_says_so(
    content: str, write: Write
) -> None:
    assert len(read(write("a.csv", content.replace("\t", ",")))) == content.count("\n")


def test_a_first_line_with_a_known_label_is_data(write: Write) -> None:
    path = write("a.tsv", "odd\tmixed\n" + NAMED)
    with pytest.raises(DataError, match="looks like a header"):
        read(path)
    labels = ("mixed", "neg", "pos")
    rows = read_rows(path, key="data_settings.train", columns=Columns(), known_labels=labels)
    assert len(rows) == 5


def test_other_columns_are_read_as_they_are(write: Write, jsonl: Write) -> None:
    columns = Columns(label="", more={"tone": "tone", "stars": "stars"})
    (row,) = read_rows(
        write("a.csv", "stars,text,tone\n5,good film,warm\n"), key="train", columns=columns
    )
    assert (row.text, row.label, row.more) == ("good film", "", {"tone": "warm", "stars": "5"})
    path = jsonl("a.jsonl", {"text": "a", "tone": ["x"], "stars": 5}, {"text": "b"})
    assert [row.more for row in read_rows(path, key="train", columns=columns)] == [
        {"tone": ["x"], "stars": 5},
        {"tone": None, "stars": None},
    ]


def test_another_column_may_be_the_usual_one_for_a_label(write: Write) -> None:
    columns = Columns(label="", more={"score": "auto"})
    for name, content in (("a.csv", "target,text\n1.5,x\n"), ("b.tsv", "x\t1.5\n")):
        (row,) = read_rows(write(name, content), key="train", columns=columns)
        assert (row.text, row.more) == ("x", {"score": "1.5"})


def test_messages_name_the_settings_table_that_asks(write: Write) -> None:
    columns = Columns(text="txt", more={"heads.tone.column": "tnoe"}, table="data_settings.tasks.a")
    with pytest.raises(DataError) as caught:
        read_rows(write("a.csv", "text,tone,label\n"), key="train", columns=columns)
    assert "set data_settings.tasks.a.text to one of them" in caught.value.hint[1]
    with pytest.raises(DataError, match=r"no column 'tnoe' for the heads\.tone\.column"):
        read_rows(
            write("a.csv", "text,tone,label\n"), key="train", columns=replace(columns, text="text")
        )
