"""The generated task: right, graded, and without a text on both sides."""

from __future__ import annotations

from collections import Counter

import pytest
from ptrain_dactbert import negation


def evaluated(text: str) -> str:
    """The label by the rules as a reader follows them, written without the generator's tables."""
    the, _, verb, *negations, adjective = text.split()
    assert (the, verb) == ("the", "is")
    scale = ["bad", "plain", "good"]
    place = next(
        number
        for number, name in enumerate(("negative", "neutral", "positive"))
        if adjective in negation.VERDICTS[name]
    )
    for word in reversed(negations):
        verdict = scale[place]
        match word:
            case "not":
                verdict = {"good": "bad", "bad": "good"}.get(verdict, verdict)
            case "hardly":
                verdict = {"good": "plain", "plain": "bad", "bad": "good"}[verdict]
            case "barely":
                verdict = {"bad": "plain", "plain": "good", "good": "bad"}[verdict]
            case _:
                raise AssertionError(word)
        place = scale.index(verdict)
    return ("negative", "neutral", "positive")[place]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_label_is_right(split: str) -> None:
    for row in negation.rows(1000, split=split, seed=3):
        assert row.label == evaluated(row.text), row.text


def test_the_difficulty_is_the_number_of_negations() -> None:
    for row in negation.rows(200, split="train", seed=0):
        assert sum(word in negation.NEGATIONS for word in row.text.split()) == row.difficulty


def test_each_difficulty_has_equally_many_rows() -> None:
    counts = Counter(row.difficulty for row in negation.rows(500, split="train", seed=0))
    assert counts == dict.fromkeys(range(negation.HARDEST + 1), 100)


def test_no_text_is_in_two_splits_whatever_the_seed() -> None:
    texts = {
        split: {
            row.text for seed in range(3) for row in negation.rows(3000, split=split, seed=seed)
        }
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_the_labels_are_balanced_at_every_difficulty() -> None:
    drawn = negation.rows(15_000, split="train", seed=0)
    for difficulty in range(negation.HARDEST + 1):
        counts = Counter(row.label for row in drawn if row.difficulty == difficulty)
        assert set(counts) == set(negation.LABELS)
        assert max(counts.values()) < 1.15 * min(counts.values())


def test_counting_the_words_will_not_do() -> None:
    labels: dict[tuple[str, ...], set[str]] = {}
    for row in negation.rows(20_000, split="train", seed=0):
        kind = next(
            name for name in negation.LABELS if row.text.split()[-1] in negation.VERDICTS[name]
        )
        words = tuple(sorted(word for word in row.text.split() if word in negation.NEGATIONS))
        labels.setdefault((kind, *words), set()).add(row.label)
    assert any(len(seen) > 1 for seen in labels.values())


def test_a_seed_gives_the_same_rows_every_time_and_another_seed_others() -> None:
    assert negation.rows(50, split="train", seed=1) == negation.rows(50, split="train", seed=1)
    assert negation.rows(50, split="train", seed=1) != negation.rows(50, split="train", seed=2)
