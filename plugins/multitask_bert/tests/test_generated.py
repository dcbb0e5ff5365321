"""The generated tasks: what they say is true, and no text is in two parts."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from ptrain_multitask_bert.generated import NAMES, PATTERNS, TASKS, Record, rows
from ptrain_multitask_bert.heads import MARKS

from plugin_trainer.errors import DataError


def plain_text(record: Record) -> str:
    """The text without marks."""
    words = record["tokens"] if "tokens" in record else record["text"].split()
    return " ".join(word for word in words if word not in MARKS)


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_a_function_of_split_and_seed(task: str) -> None:
    some = rows(task, split="train", size=50, seed=3)
    assert some == rows(task, split="train", size=80, seed=3)[:50]
    assert some != rows(task, split="train", size=50, seed=4)
    assert len(some) == 50


def test_no_text_is_in_two_parts_in_whichever_task() -> None:
    parts = {
        split: {
            plain_text(record)
            for task in TASKS
            for record in rows(task, split=split, size=500, seed=1)
        }
        for split in ("train", "validation", "test")
    }
    assert not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]


def test_the_last_clause_of_a_sentiment_decides() -> None:
    labels = {
        record["text"]: record["label"]
        for record in rows("sentiment", split="train", size=3000, seed=0)
    }
    turned = {text: label for text, label in labels.items() if re.search(r" not \w+$", text)}
    plain = {re.sub(r" not (\w+)$", r" \1", text): label for text, label in turned.items()}
    both = plain.keys() & labels.keys()
    assert len(both) > 20
    assert all(labels[text] != plain[text] for text in both)
    for text, label in labels.items():
        last = text.rpartition(" but ")[2]
        if last in labels:
            assert labels[last] == label


def test_the_tags_of_entities_are_bio_and_cover_each_name() -> None:
    known = {kind: set(names) for kind, names in NAMES.items()}
    for record in rows("entities", split="train", size=300, seed=0):
        text = "".join(
            f"{'|' if tag.startswith('B') else ' '}{word}/{tag[2:]}" if tag != "O" else "|"
            for word, tag in zip(record["tokens"], record["tags"], strict=True)
        )
        for name in filter(None, text.split("|")):
            words, kinds = zip(*(word.split("/") for word in name.split()), strict=True)
            assert len(set(kinds)) == 1
            assert " ".join(words) in known[kinds[0]]


def test_a_name_alone_does_not_tell_what_it_is() -> None:
    tags: dict[str, set[str]] = {}
    for record in rows("entities", split="train", size=2000, seed=0):
        for word, tag in zip(record["tokens"], record["tags"], strict=True):
            tags.setdefault(word, set()).add(tag)
    assert {"B-person", "B-place"} <= tags["jordan"]
    assert {"B-company", "B-place"} <= tags["phoenix"]


def test_a_relation_has_each_mark_once_in_order_around_names() -> None:
    names = {name for some in NAMES.values() for name in some}
    for record in rows("relations", split="train", size=300, seed=0):
        found = re.findall(r"<e1> (.+?) </e1>.*<e2> (.+?) </e2>", record["text"])
        assert len(found) == 1
        assert set(found[0]) <= names


def test_the_marks_decide_a_relation_and_every_label_comes() -> None:
    some = rows("relations", split="train", size=4000, seed=0)
    names = sorted((name for some in NAMES.values() for name in some), key=len, reverse=True)
    any_name = re.compile(rf"\b({'|'.join(names)})\b")
    labels: dict[str, set[str]] = {}
    for record in some:
        wording = any_name.sub("X", plain_text(record))
        labels.setdefault(wording, set()).add(record["label"])
    several = [wording for wording, found in labels.items() if len(found) > 1]
    assert len(several) > 0.3 * len(labels)
    counts = Counter(record["label"] for record in some)
    expected = {label for _, related in PATTERNS for label in related.values()} | {"none"}
    assert set(counts) == expected
    assert min(counts.values()) > 0.03 * len(some)
    assert max(counts.values()) < 0.6 * len(some)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(DataError, match="no generated task 'stance'") as caught:
        rows("stance", split="train", size=1, seed=0)
    assert "sentiment, entities, relations" in caught.value.hint[0]
