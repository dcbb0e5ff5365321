"""Entities: from files in any scheme to labelled pieces, and from tags to places in a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.entities import Entities, found_entities
from ptrain_multitask_bert.parts import Part, Parts
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.settings_data import HeadSettings, TaskSettings

from plugin_trainer.data.texts.tokenizers import trained_tokenizer
from plugin_trainer.errors import DataError

TEXT = "maria sang in new york ; unbelievable"
TOKENIZER = trained_tokenizer([TEXT] * 9, vocabulary_size=300)
CONLL = "maria\tB-person\nsang\tO\n\nin\tO\nnew\tB-place\nyork\tI-place\n"


def made(folder: Path, content: str, *, name: str = "a.conll", **changes: Any) -> tuple[Any, Part]:
    """A task over one file, not read yet."""
    path = folder / name
    path.write_text(content, encoding="utf-8")
    max_tokens = changes.pop("max_tokens", 32)
    settings = TaskSettings(kind="entities", train=str(path), **changes)
    part = Parts("names", settings, seed=0).of("train")
    assert part is not None
    return Entities("names", settings, max_tokens=max_tokens), part


def labels_of(task: Any, part: Part) -> list[list[str]]:
    """The tags of the words, as they are trained on."""
    rows = task.read(part)
    task.learn(rows, part)
    texts = task.encode(rows, tokenizer=TOKENIZER, where=part.where)
    names = task.heads[0].labels
    return [
        [names[number] for number in texts[at]["labels_entities"].tolist() if number != -100]
        for at in range(len(texts))
    ]


@pytest.mark.parametrize(
    "content",
    [
        CONLL,
        CONLL.replace("B-", "I-"),
        CONLL.replace("B-person", "S-person").replace("I-place", "E-place"),
    ],
    ids=["bio", "iob1", "bioes"],
)
def test_tags_of_every_scheme_are_trained_on_as_bio(tmp_path: Path, content: str) -> None:
    task, part = made(tmp_path, content)
    assert labels_of(task, part) == [["B-person", "O"], ["O", "B-place", "I-place"]]
    assert task.heads[0].labels == ("O", "B-person", "I-person", "B-place", "I-place")
    assert task.heads[0].name == "entities" and task.heads[0].kind == "tokens"


@pytest.mark.parametrize("words", ["tokens", "words"])
@pytest.mark.parametrize("tags", ["tags", "ner_tags"])
def test_words_and_tags_as_lists(tmp_path: Path, words: str, tags: str) -> None:
    row = {words: ["maria", "sang"], tags: ["B-person", "O"]}
    task, part = made(tmp_path, json.dumps(row) + "\n", name="a.jsonl")
    assert labels_of(task, part) == [["B-person", "O"]]


def test_tags_that_break_bio_are_an_error_with_their_lines(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL.replace("sang\tO", "sang\tI-place"))
    with pytest.raises(DataError) as caught:
        task.read(part)
    assert "a.conll:2: I-place after B-person breaks BIO" in caught.value.message


def test_broken_tags_are_repaired_when_asked_and_counted(tmp_path: Path) -> None:
    content = CONLL.replace("sang\tO", "sang\tI-place")
    task, part = made(tmp_path, content, broken_tags="repair")
    assert labels_of(task, part)[0] == ["B-person", "B-place"]
    assert task.notes == {"tags repaired": 1}


def test_what_is_no_tag_is_not_repaired(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL.replace("B-person", "person"), broken_tags="repair")
    with pytest.raises(DataError, match="'person' is no tag of an entity"):
        task.read(part)


def test_the_scheme_may_be_given(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL.replace("B-", "I-"), scheme="bio")
    with pytest.raises(DataError) as caught:
        task.read(part)
    assert "2 rows cannot be used" in caught.value.message


def test_a_word_longer_than_the_window_is_refused_with_its_line(tmp_path: Path) -> None:
    task, part = made(tmp_path, "zzzzzzzzzzzzzzzzzzz\tB-person\n", max_tokens=10)
    rows = task.read(part)
    task.learn(rows, part)
    with pytest.raises(DataError) as caught:
        task.encode(rows, tokenizer=TOKENIZER, where=part.where)
    assert "a.conll:1: 'zzzzzzzzzzzzzzzzzzz' is 20 tokens long, and 8 are read" in str(caught.value)
    assert "data_settings.tasks.names.max_tokens" in caught.value.hint[0]


def test_words_that_the_window_cuts_off_are_counted(tmp_path: Path) -> None:
    task, part = made(tmp_path, "new\tB-place\nyork\tI-place\n" + "in\tO\n" * 9, max_tokens=8)
    (read,) = labels_of(task, part)
    assert read[:2] == ["B-place", "I-place"] and len(read) == 11 - task.notes["words cut off"]


def test_an_unknown_type_in_a_later_file(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL)
    task.learn(task.read(part), part)
    _, later = made(tmp_path, CONLL.replace("person", "persn"), name="b.conll")
    with pytest.raises(DataError) as caught:
        task.encode(task.read(later), tokenizer=TOKENIZER, where=later.where)
    assert "b.conll:1: unknown type of entity 'persn'; did you mean person?" in str(caught.value)


def test_types_and_weights_from_the_settings(tmp_path: Path) -> None:
    heads = {"names": HeadSettings(labels=("place", "person", "firm"), class_weights={"O": 0.1})}
    task, part = made(tmp_path, CONLL, heads=heads)
    task.learn(task.read(part), part)
    assert task.heads[0].name == "names"
    assert task.heads[0].labels[:3] == ("O", "B-place", "I-place")
    assert task.heads[0].class_weights == (0.1, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "maria\tO\n", "none of its 1 sentences has an entity"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}\n', "a.jsonl:1: 1 words and 2 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [1]}\n', "a.jsonl:1: the tags are numbers"),
        ("a.jsonl", '{"tokens": "a", "tags": ["O"]}\n', "the words are \"a\", not a list"),
        ("a.jsonl", '{"tokens": ["a"], "tgas": ["O"]}\n', "which column has the tags?"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', "holds no sentence"),
        ("a.jsonl", "no json\n", "a.jsonl:1: not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    task, part = made(tmp_path, content, name=name)
    with pytest.raises(DataError) as caught:
        task.learn(task.read(part), part)
    assert said in str(caught.value)


def test_more_heads_than_one_are_refused(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL, heads={"a": HeadSettings(), "b": HeadSettings()})
    with pytest.raises(DataError, match="a task of kind 'entities' has one head"):
        task.learn(task.read(part), part)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-x I-x O", [("x", "New York")]),
        ("B-x B-x O", [("x", "New"), ("x", "York")]),
        ("I-x I-y I-y", [("x", "New"), ("y", "York now")]),
        ("O O O", []),
        ("B-x O I-x", [("x", "New"), ("x", "now")]),
    ],
)
def test_tags_become_entities_with_their_places(tags: str, expected: list[tuple[str, str]]) -> None:
    text, spans = "New York now", [(0, 3), (4, 8), (9, 12)]
    found = found_entities(tags.split(), spans, [0.9, 0.8, 0.7], text=text)
    assert [(one["type"], one["text"]) for one in found] == expected
    assert all(text[one["start"] : one["end"]] == one["text"] for one in found)


def test_an_entity_is_as_sure_as_its_least_sure_word() -> None:
    (one,) = found_entities(["B-x", "I-x"], [(0, 1), (2, 3)], [0.9, 0.4], text="a b")
    assert one["probability"] == 0.4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Maria's aunt, in New-York.", ["Maria", "'s", "aunt", ",", "in", "New-York", "."]),
        ("@maria #oslo 3.5 a/b http://a.b/c", ["@maria", "#oslo", "3.5", "a/b", "http", ":", "/",
                                               "/", "a.b/c"]),
        ("<e1>Maria</e1>'s", ["Maria", "'s"]),
        ("\U0001f600!", ["\U0001f600", "!"]),
        ("  ", []),
    ],
)  # fmt: skip
def test_a_text_is_taken_apart_into_words_with_their_places(text: str, words: list[str]) -> None:
    request = Request(text, "line 1")
    assert [text[start:end] for start, end in request.words()] == words


def test_answers_have_places_in_the_text_as_it_was_given(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL)
    task.learn(task.read(part), part)
    requests = [Request("Maria  sang in <e1>New York</e1>!", "line 1")]
    texts, about = task.encode_requests(requests, tokenizer=TOKENIZER)
    word = texts[0]["word"]
    tags = {0: 1, 3: 3, 4: 4}  # B-person, B-place, I-place, by the number of the word
    best = torch.tensor([tags.get(number, 0) for number in word.tolist()])
    logits = torch.nn.functional.one_hot(best, 5)[None].float()
    (answer,) = task.answers({"entities": logits}, {"word": word[None]}, about)
    places = [(one["type"], one["start"], one["end"]) for one in answer["entities"]]
    assert places == [("person", 0, 5), ("place", 19, 27)]
    assert "words_not_read" not in answer


def test_an_answer_says_how_many_words_were_not_read(tmp_path: Path) -> None:
    task, part = made(tmp_path, CONLL, max_tokens=6)
    task.learn(task.read(part), part)
    requests = [Request("in new york in new york in", "line 1")]
    texts, about = task.encode_requests(requests, tokenizer=TOKENIZER)
    read = int((texts[0]["word"] != -100).sum())
    word = texts[0]["word"][None]
    (answer,) = task.answers({"entities": torch.zeros(*word.shape, 5)}, {"word": word}, about)
    assert read < 7 and answer["words_not_read"] == 7 - read
