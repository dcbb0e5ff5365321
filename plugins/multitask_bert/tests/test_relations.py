"""Relations: files, marks in the window, and where they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ptrain_multitask_bert.heads import MARKS
from ptrain_multitask_bert.parts import Part, Parts
from ptrain_multitask_bert.relations import Relations, spaced
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.settings_data import TaskSettings

from plugin_trainer.data.texts.tokenizers import trained_tokenizer
from plugin_trainer.errors import DataError

TOKENIZER = trained_tokenizer(["maria works for acme in oslo"] * 9, vocabulary_size=300)
TOKENIZER.add_special_tokens({"additional_special_tokens": list(MARKS)})
MARKED = "<e1>maria</e1> works for <e2>acme</e2> in oslo"


def made(folder: Path, content: str, *, name: str = "a.tsv", **changes: Any) -> tuple[Any, Part]:
    """A task over one file, not read yet."""
    path = folder / name
    path.write_text(content, encoding="utf-8")
    max_tokens = changes.pop("max_tokens", 32)
    settings = TaskSettings(kind="relations", train=str(path), **changes)
    part = Parts("pairs", settings, seed=0).of("train")
    assert part is not None
    return Relations("pairs", settings, max_tokens=max_tokens), part


def encoded(task: Any, part: Part) -> Any:
    rows = task.read(part)
    task.learn(rows, part)
    return task.encode(rows, tokenizer=TOKENIZER, where=part.where)


def test_a_table_of_marked_texts(tmp_path: Path) -> None:
    other = "in <e2>oslo</e2> <e1>maria</e1> works"
    task, part = made(tmp_path, f"{MARKED}\tworks_for\n{other}\tnone\n")
    texts = encoded(task, part)
    assert task.heads[0].name == "relation" and task.heads[0].kind == "relation"
    assert task.heads[0].labels == ("none", "works_for")
    assert texts.per_row["labels_relation"].tolist() == [1, 0]
    for row in range(2):
        item = texts[row]
        marks = item["input_ids"][item["mark_positions"]]
        assert TOKENIZER.convert_ids_to_tokens(marks.tolist()) == ["<e1>", "<e2>"]


def test_the_column_of_a_relation_may_be_called_so(tmp_path: Path) -> None:
    task, part = made(tmp_path, f"relation,sentence\nnone,{MARKED}\nworks_for,{MARKED}\n",
                      name="a.csv")  # fmt: skip
    assert encoded(task, part).per_row["labels_relation"].tolist() == [0, 1]


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": MARKED, "relation": label}) for label in ("a", "b")]
    task, part = made(tmp_path, "\n".join(lines), name="a.jsonl")
    assert encoded(task, part).per_row["labels_relation"].tolist() == [0, 1]


def test_a_file_of_semeval_2010(tmp_path: Path) -> None:
    content = f'1\t"{MARKED}"\nOther\nComment:\n\n2\t"{MARKED}"\nPart(e1,e2)\nComment:\n'
    task, part = made(tmp_path, content, name="TRAIN.TXT")
    assert encoded(task, part).per_row["labels_relation"].tolist() == [0, 1]


def test_a_text_without_its_marks_is_refused_with_its_line(tmp_path: Path) -> None:
    content = f"{MARKED}\ta\nno marks\tb\n<e1>one</e1> only\tb\n"
    task, part = made(tmp_path, content)
    with pytest.raises(DataError) as caught:
        task.read(part)
    assert caught.value.message.endswith("a.tsv: 2 rows cannot be used")
    assert "a.tsv:2: no <e1> and no </e1> and no <e2> and no </e2>" in caught.value.hint[0]
    assert "a.tsv:3: no <e2> and no </e2>" in caught.value.hint[1]


@pytest.mark.parametrize("before", [0, 3, 40])
@pytest.mark.parametrize("after", [0, 3, 40])
def test_the_window_is_put_around_the_marks(tmp_path: Path, before: int, after: int) -> None:
    text = f"{'oslo ' * before}{MARKED}{' oslo' * after}"
    task, part = made(tmp_path, f"{text}\ta\n{MARKED}\tb\n", max_tokens=16)
    item = encoded(task, part)[0]
    tokens = TOKENIZER.convert_ids_to_tokens(item["input_ids"].tolist())
    assert {*MARKS} <= {*tokens} and len(tokens) <= 16
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
    assert [tokens[at] for at in item["mark_positions"].tolist()] == ["<e1>", "<e2>"]
    if before == after == 40:
        assert len(tokens) == 16
        start, end = tokens.index("<e1>"), tokens.index("</e2>")
        assert abs((start - 1) - (len(tokens) - 2 - end)) <= 1  # as much on both sides


def test_marks_that_are_too_far_apart_are_refused_with_their_line(tmp_path: Path) -> None:
    text = MARKED.replace("works", "works " * 30)
    task, part = made(tmp_path, f"{MARKED}\ta\n{text}\tb\n", max_tokens=16)
    with pytest.raises(DataError, match=r"a\.tsv:2: the marked spans take \d+ tokens, and 14 are"):
        encoded(task, part)


def test_the_space_before_a_span_goes_inside_of_its_marks() -> None:
    assert spaced("so <e1>a b</e1> , <e2> c </e2>.") == "so<e1> a b</e1> ,<e2> c</e2>."


def test_a_request_without_marks_is_not_for_it(tmp_path: Path) -> None:
    task, part = made(tmp_path, f"{MARKED}\ta\n{MARKED}\tb\n")
    encoded(task, part)
    assert task.why_not(Request("no marks", "line 1"))
    assert not task.why_not(Request(MARKED, "line 1"))
    with pytest.raises(DataError, match="line 7: no </e2>"):
        task.encode_requests([Request("<e1>a</e1> <e2>b", "line 7")], tokenizer=TOKENIZER)
