"""Classification: where the labels of a head come from, and what becomes of each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.classification import Classification, answers_of
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.parts import Parts
from ptrain_multitask_bert.settings_data import HeadSettings, TaskSettings

from plugin_trainer.data.texts.tokenized import TokenizedTexts
from plugin_trainer.data.texts.tokenizers import trained_tokenizer
from plugin_trainer.errors import DataError

TOKENIZER = trained_tokenizer(["a warm and funny film", "dull"], vocabulary_size=300)
NAN = float("nan")


def task_of(
    file: Path, heads: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any
) -> Any:
    """A task that has learnt its labels from a file, and its texts as they are trained on."""
    tables = {name: HeadSettings(**one) for name, one in (heads or {}).items()}
    settings = TaskSettings(train=str(file), heads=tables, **changes)
    task = Classification("film", settings, max_tokens=32)
    part = Parts("film", settings, seed=0).of("train")
    assert part is not None
    rows = task.read(part)
    task.learn(rows, part)
    return task, task.encode(rows, tokenizer=TOKENIZER, where=part.where)


def labels_in(texts: TokenizedTexts, head: str) -> Any:
    return texts.per_row[f"labels_{head}"].tolist()


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def jsonl(folder: Path, *rows: Mapping[str, Any]) -> Path:
    return write(folder, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_without_heads_there_is_one_whose_labels_are_in_the_usual_column(tmp_path: Path) -> None:
    task, texts = task_of(write(tmp_path, "a.tsv", "warm film\t1\ndull\t0\nfunny\t1\n"))
    assert task.heads == (Head(task="film", name="label", kind="single_label", labels=("0", "1")),)
    assert labels_in(texts, "label") == [1, 0, 1]
    assert not task.pairs


def test_several_heads_read_the_columns_of_their_names(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "a.csv",
        "text,tone,topic,stars\nwarm film,good,film,4.5\ndull,bad,,1\nhot soup,good,food,\n",
    )
    task, texts = task_of(
        file, {"tone": {}, "topic": {}, "stars": {"kind": "regression", "weight": 0.5}}
    )
    assert [(head.name, head.kind, head.labels, head.weight) for head in task.heads] == [
        ("tone", "single_label", ("bad", "good"), 1.0),
        ("topic", "single_label", ("film", "food"), 1.0),
        ("stars", "regression", (), 0.5),
    ]
    assert labels_in(texts, "tone") == [1, 0, 1]
    assert labels_in(texts, "topic") == [0, -100, 1]
    assert labels_in(texts, "stars") == pytest.approx([4.5, 1, NAN], nan_ok=True)


def test_sets_of_labels_from_a_cell_with_separators(tmp_path: Path) -> None:
    file = write(tmp_path, "a.tsv", "text\ttags\nwarm\ta, b\ndull\t\nfunny\tb\n")
    task, texts = task_of(file, {"tags": {"kind": "multi_label", "column": "tags"}})
    assert task.heads[0].labels == ("a", "b")
    assert labels_in(texts, "tags") == [[1, 1], [0, 0], [0, 1]]


def test_sets_of_labels_from_lists_where_null_means_not_known(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path,
        {"text": "warm", "labels": ["a", "b"]},
        {"text": "dull", "labels": []},
        {"text": "odd", "labels": None},
        {"text": "odd"},
        {"text": "both", "labels": "b"},
    )
    task, texts = task_of(file, {"tags": {"kind": "multi_label"}})
    unknown = [-100, -100]
    assert labels_in(texts, "tags") == [[1, 1], [0, 0], unknown, unknown, [0, 1]]
    assert task.heads[0].labels == ("a", "b")


def test_sets_of_labels_from_one_column_of_0_and_1_for_each(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "text,toxic,rude\nwarm,0,false\ndull,1,1\nfunny,,\n")
    columns = {"kind": "multi_label", "columns": ("toxic", "rude"), "threshold": 0.3}
    task, texts = task_of(file, {"harm": columns})
    assert task.heads[0].labels == ("toxic", "rude") and task.heads[0].threshold == 0.3
    assert labels_in(texts, "harm") == [[0, 0], [1, 1], [-100, -100]]


def test_sets_of_labels_from_lists_of_marks(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"text": "a", "labels": [0.0, 1.0]}, {"text": "b", "labels": [1.0, 0.0]})
    _, texts = task_of(file, {"tags": {"kind": "multi_label", "labels": ("x", "y")}})
    assert labels_in(texts, "tags") == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="the labels of tags are 2 numbers such as 0"):
        task_of(file, {"tags": {"kind": "multi_label"}})


def test_a_number_for_each_text_from_the_usual_column(tmp_path: Path) -> None:
    task, texts = task_of(
        write(tmp_path, "a.tsv", "warm\t1.5\ndull\t-2\n"), {"score": {"kind": "regression"}}
    )
    assert task.heads[0].kind == "regression"
    assert labels_in(texts, "score") == [1.5, -2]


def test_pairs_and_their_heads(tmp_path: Path) -> None:
    file = write(tmp_path, "a.tsv", "premise\thypothesis\tlabel\na film\tdull\tno\na\tb\tyes\n")
    task, texts = task_of(file)
    assert task.pairs and labels_in(texts, "label") == [0, 1]
    assert len(texts[0]["input_ids"]) == len(TOKENIZER("a film", "dull")["input_ids"])


def test_labels_listed_in_the_settings_give_the_order_and_weights_go_by_name(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "a.tsv", "warm\tpos\ndull\tneg\n")
    heads = {"tone": {"labels": ("pos", "neg", "none"), "class_weights": {"neg": 2.5}}}
    task, texts = task_of(file, heads)
    assert task.heads[0].labels == ("pos", "neg", "none")
    assert task.heads[0].class_weights == (1.0, 2.5, 1.0)
    assert labels_in(texts, "tone") == [0, 1]


TABLE = "data_settings.tasks.film"


@pytest.mark.parametrize(
    ("content", "heads", "said", "hint"),
    [
        (
            "text,tone,topic\na,x,\nb,y,\n",
            {"tone": {}, "topic": {}},
            "a.csv: none of its 2 rows has a label for the head 'topic' of the task 'film'",
            f"is {TABLE}.heads.topic.column the right column?",
        ),
        (
            "text,tone\na,x\nb,y\n",
            {"tone": {}, "topic": {}},
            "a.csv:1: no column 'topic' for the heads.topic.column",
            "columns: text, tone",
        ),
        (
            "text,stars\na,3\nb,many\nc,inf\n",
            {"stars": {"kind": "regression", "column": "stars"}},
            "a.csv: 2 rows cannot be used",
            "a.csv:3: 'many' is not a number",
        ),
        (
            "text,rude\na,0\nb,2\n",
            {"harm": {"kind": "multi_label", "columns": ("rude",)}},
            "a.csv:3: rude is '2', where 0 or 1 is wanted",
            "a column for each label",
        ),
        (
            "text,tone,topic\na,x,u\nb,x,v\n",
            {"tone": {}, "topic": {}},
            "a.csv: every row has the label 'x'",
            f"is {TABLE}.heads.tone.column the right column?",
        ),
        (
            "text,label\na,x\nb,y\n",
            {"tone": {"columns": ("x",)}},
            f"{TABLE}.heads.tone.columns is set, and the head is of kind single_label",
            'kind = "multi_label"',
        ),
        (
            "text,label\na,x\nb,y\n",
            {"tone": {"class_weights": {"z": 2.0}}},
            f"{TABLE}.heads.tone.class_weights: there is no label 'z'",
            "labels: x, y",
        ),
        (
            "text,label\na,x\nb,y\n",
            {"tone": {"labels": ("x", "z")}},
            "a.csv:3: unknown label 'y'",
            f"list the label in {TABLE}.heads.tone.labels",
        ),
        ("text,label\na,x\nb,\n", None, "a.csv:3: no label", "give the row a label"),
        ("text,label\n", None, f"{TABLE}.train: ", "give a file"),
        (
            "text,tags\na,[x]\nb,y\n",
            {"tags": {"kind": "multi_label", "column": "tags"}},
            "a.csv:2: the labels of tags are no JSON list",
            "or as a list",
        ),
    ],
)
def test_what_is_wrong_with_labels_is_named(
    tmp_path: Path, content: str, heads: Any, said: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        task_of(write(tmp_path, "a.csv", content), heads)
    assert said in caught.value.message
    assert any(hint in line for line in caught.value.hint), caught.value.hint


def test_broken_labels_of_a_later_file_come_together(tmp_path: Path) -> None:
    task, _ = task_of(write(tmp_path, "a.tsv", "warm\tpos\ndull\tneg\n"))
    later = write(tmp_path, "b.tsv", "warm\tpso\nwarm\tpos\ndull\tngeative\n")
    part = Parts("film", TaskSettings(train=str(later)), seed=0).of("train")
    rows = task.read(part)
    with pytest.raises(DataError) as caught:
        task.encode(rows, tokenizer=TOKENIZER, where=part.where)
    assert caught.value.message.endswith("b.tsv: 2 rows cannot be used")
    assert caught.value.hint[0].endswith("b.tsv:1: unknown label 'pso'; did you mean pos?")


def test_pairs_where_the_training_data_have_single_texts(tmp_path: Path) -> None:
    task, _ = task_of(write(tmp_path, "a.tsv", "warm\tpos\ndull\tneg\n"))
    pairs = write(tmp_path, "b.tsv", "premise\thypothesis\tlabel\na\tb\tpos\n")
    part = Parts("film", TaskSettings(train=str(pairs)), seed=0).of("train")
    with pytest.raises(DataError, match=r"b\.tsv:2: a pair of texts") as caught:
        task.encode(task.read(part), tokenizer=TOKENIZER, where=part.where)
    assert f"{TABLE}.text_pair" in caught.value.hint[0]


def test_answers_have_the_label_and_the_probability_of_each() -> None:
    one = Head(task="t", name="h", kind="single_label", labels=("a", "b"))
    (answer,) = answers_of(one, torch.tensor([[0.0, 1.0]]))
    assert answer["label"] == "b"
    assert answer["probabilities"] == pytest.approx({"a": 0.2689, "b": 0.7311}, abs=1e-4)


def test_answers_of_sets_go_by_the_threshold_on_probabilities() -> None:
    one = Head(task="t", name="h", kind="multi_label", labels=("a", "b", "c"), threshold=0.6)
    (answer,) = answers_of(one, torch.tensor([[0.3, 0.9, -1.0]]))  # 0.57, 0.71, 0.27
    assert answer["labels"] == ["b"]
    assert answer["probabilities"] == pytest.approx({"a": 0.574, "b": 0.711, "c": 0.269}, abs=1e-3)
    number = Head(task="t", name="h", kind="regression")
    assert answers_of(number, torch.tensor([1.5, 2.0])) == [{"value": 1.5}, {"value": 2.0}]
