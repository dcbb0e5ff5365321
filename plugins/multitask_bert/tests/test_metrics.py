"""Metrics: whole entities as seqeval counts them, probabilities, directions, unknown labels."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.entity_score import EntityScore
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.metrics import metrics_of
from ptrain_multitask_bert.relation_score import DirectedF1, relation_types
from torch import Tensor

from plugin_trainer.data import Fed

TAGS = ("O", "B-x", "I-x", "B-y", "I-y")
WHICH = ("precision", "recall", "f1")


def logits_of(classes: Tensor, *, count: int) -> Tensor:
    """Logits whose largest is that of the given class."""
    return torch.nn.functional.one_hot(classes, count).float() * 3 - 1


def scores(found: Sequence[str], there: Sequence[str], *, batch_size: int = 2) -> list[float]:
    """Precision, recall and F1 of sentences, written as tags with spaces; "_" is no word."""
    metrics = [EntityScore(TAGS, which) for which in WHICH]
    pairs = list(zip(found, there, strict=True))
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        width = max(len(right.split()) for _, right in some)
        labels = torch.full((len(some), width), -100)
        best = torch.randint(len(TAGS), (len(some), width))  # at a padded place anything
        for row, (guess, right) in enumerate(some):
            for at, (one, other) in enumerate(zip(guess.split(), right.split(), strict=True)):
                if other != "_":
                    labels[row, at], best[row, at] = TAGS.index(other), TAGS.index(one)
        for metric in metrics:
            metric.update(logits_of(best, count=len(TAGS)), labels)
    return [float(metric.compute()) for metric in metrics]


@pytest.mark.parametrize(
    ("found", "there", "expected"),
    [
        (["B-x I-x O"], ["B-x I-x O"], (1, 1, 1)),
        (["B-x O O"], ["B-x I-x O"], (0, 0, 0)),  # one end is wrong
        (["B-y I-y O"], ["B-x I-x O"], (0, 0, 0)),  # the type is wrong
        (["B-x I-x B-y"], ["B-x I-x O"], (1 / 2, 1, 2 / 3)),
        (["B-x O O"], ["B-x B-x B-y"], (1, 1 / 3, 1 / 2)),
        (["I-x I-x O"], ["B-x I-x O"], (1, 1, 1)),  # nothing began it: it begins
        (["B-x I-y O"], ["B-x B-y O"], (1, 1, 1)),
        (["B-x B-x"], ["B-x I-x"], (0, 0, 0)),
        (["O O"], ["O O"], (0, 0, 0)),
        (["B-x O"], ["O O"], (0, 0, 0)),
        (["B-x _ I-x"], ["B-x _ I-x"], (1, 1, 1)),  # between two words there are other pieces
        (["B-x", "I-x"], ["B-x", "B-x"], (1, 1, 1)),  # an entity ends with its sentence
    ],
)
def test_an_entity_is_right_if_its_type_and_both_ends_are(
    found: list[str], there: list[str], expected: tuple[float, ...]
) -> None:
    assert scores(found, there) == pytest.approx(expected)


# Counted by seqeval 1.2.2 over sentences drawn at random: entities right, found and there. A letter
# is a tag: X and Y begin an entity of a type, x and y go on with one, whatever came before.
COUNTED = [
    (
        (53, 61, 63),
        "XYOOyO yY yOyy XyOyxyX yYOYyYxO YxxXYOxOy x xYXOYYXy xXYyxYxYX yyxyyy YY YXOx yOOXyY "
        "XxOxOxxY xy yyXY",
        "XYOOyO yY yOyy XyOyxyX yYxYyYxx YXxXYYOOy x xYxOYxXy xXYyxYxYX yyxXyy YY YXOx yOOXyY "
        "YxOXOxxY xy yyyx",
    ),
    (
        (34, 56, 54),
        "XxYx YxxOOO OOYYYX OX XyOYYXXy xyOx yXYXXyXy yyyYOy Yx xXXyyYyXy YXYXX YyY OxyOXO xx "
        "YyY OxOXYO",
        "XyYx YxxOXO OOYXYX XX XyyYxXyy xyXy yyYyXyXy yyyYOy Yx XxYyyYyXy OXxXx YyY OxyYYO xx "
        "YxY OxOXYO",
    ),
    (
        (37, 48, 43),
        "OyOxy Xx xyXxY O YxYxYXYYy OOx yxyXxxY XxXOx O XY XXOYY xyX XyYyOyXOO xyXOYOYx y OyXx",
        "OYOxy Xx xyXxY O XyYXYOYYy OOx yxyXxOY XxXOx O XY xXOyy xyX XyyyOyXOO OyyOyOYx y OyXx",
    ),
]
LETTERS = dict(zip("OXxYy", TAGS, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize(("counts", "found", "there"), COUNTED)
def test_entities_are_counted_as_seqeval_counts_them_over_batches_of_any_size(
    counts: tuple[int, int, int], found: str, there: str, batch_size: int
) -> None:
    def tags(sentences: str) -> list[str]:
        return [" ".join(LETTERS[letter] for letter in one) for one in sentences.split()]

    right, of_found, of_there = counts
    expected = (right / of_found, right / of_there, 2 * right / (of_found + of_there))
    assert scores(tags(found), tags(there), batch_size=batch_size) == pytest.approx(expected)


def head(kind: Any, *labels: str, **changes: Any) -> Head:
    return Head(task="task", name="head", kind=kind, labels=labels, **changes)


def computed(one: Head, logits: Tensor, labels: Tensor, *, batches: int = 2) -> dict[str, float]:
    """Every metric of a head over some batches."""
    values = {}
    for name, metric in metrics_of(one).items():
        fed = metric if isinstance(metric, Fed) else None
        plain = fed.metric if fed else metric
        for some, other in zip(logits.chunk(batches), labels.chunk(batches), strict=True):
            if fed:
                plain.update(*fed.feed({"logits": {"head": some}}, {"labels_head": other}))
            else:
                plain.update(some, other)
        values[name] = float(plain.compute())
    return values


def test_one_label_a_text_where_one_is_not_known() -> None:
    best, labels = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 2, -100])
    values = computed(head("single_label", "a", "b", "c"), logits_of(best, count=3), labels)
    assert values == pytest.approx(
        {
            "accuracy": 3 / 4,
            "precision": (1 + 1 / 2 + 1) / 3,
            "recall": (1 / 2 + 1 + 1) / 3,
            "f1": (2 / 3 + 2 / 3 + 1) / 3,
            "f1_weighted": (2 * 2 / 3 + 2 / 3 + 1) / 4,
        }
    )


def test_a_label_of_several_is_given_by_its_probability_and_not_by_its_logit() -> None:
    # 0.3 is the logit of 0.57: given above a half; a threshold on logits would leave it out.
    logits = torch.tensor([[0.3, -0.3], [0.3, 0.9]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert computed(head("multi_label", "a", "b"), logits, labels)["exact"] == 1
    strict = computed(head("multi_label", "a", "b", threshold=0.6), logits, labels)
    assert strict["exact"] == 0 and strict["accuracy"] == 2 / 4


def test_labels_that_are_not_known_are_left_out_of_sets() -> None:
    logits = torch.tensor([[2.0, -2.0], [2.0, 2.0]])
    labels = torch.tensor([[1.0, -100.0], [float("nan"), 1.0]])
    values = computed(head("multi_label", "a", "b"), logits, labels)
    assert values["accuracy"] == values["f1"] == values["f1_micro"] == 1


def test_numbers_where_some_are_not_known() -> None:
    numbers = torch.tensor([1.0, 2.0, 4.0, 9.0])
    labels = torch.tensor([1.5, 2.5, 3.5, float("nan")])
    values = computed(head("regression"), numbers, labels, batches=4)
    pearson = torch.corrcoef(torch.stack([numbers[:3], labels[:3]]))[0, 1]
    assert values == pytest.approx(
        {"mse": 0.25, "mae": 0.5, "pearson": float(pearson), "spearman": 1.0}, abs=1e-5
    )


def test_without_a_known_number_a_score_is_none() -> None:
    values = computed(head("regression"), torch.ones(2), torch.full((2,), float("nan")))
    assert all(value != value for value in values.values())


def test_the_accuracy_of_tags_is_one_of_words() -> None:
    labels = torch.tensor([[0, 1, -100], [2, -100, -100]])
    best = torch.tensor([[0, 1, 3], [1, 4, 4]])
    values = computed(head("tokens", *TAGS), logits_of(best, count=5), labels)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert set(values) == {"accuracy", *WHICH}


DIRECTED = ("Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Other")


def test_a_relation_in_the_wrong_direction_is_found_wrongly_and_missed() -> None:
    there = torch.tensor([0, 0, 1, 2, 3, 3])
    found = torch.tensor([0, 1, 1, 3, 3, 2])
    # Cause: 2 right of 3 found and 3 there. Part: 0 right. Other counts only as a wrong answer.
    metric = DirectedF1(DIRECTED)
    metric.update(logits_of(found, count=4), there)
    assert float(metric.compute()) == pytest.approx((2 / 3 + 0) / 2)
    assert "f1_directed" in metrics_of(head("relation", *DIRECTED))
    assert "f1_directed" not in metrics_of(head("relation", "works_for", "none"))
    assert relation_types(DIRECTED) == ["Cause", "Part"]


@pytest.mark.parametrize(
    "one",
    [
        head("single_label", "a", "b"),
        head("multi_label", "a", "b"),
        head("tokens", *TAGS),
        head("relation", *DIRECTED),
        head("regression"),
    ],
    ids=lambda one: one.kind,
)
def test_metrics_can_be_pickled_reset_and_used_again(one: Head) -> None:
    for metric in metrics_of(one).values():
        plain = metric.metric if isinstance(metric, Fed) else metric
        again = pickle.loads(pickle.dumps(plain))
        again.reset()
    shape = {"tokens": (2, 3, 5), "regression": (4,)}.get(one.kind, (4, len(one.labels)))
    logits = torch.randn(shape)
    labels = {
        "multi_label": torch.ones(4, 2),
        "tokens": torch.ones(2, 3, dtype=torch.long),
        "regression": torch.arange(4.0),
    }.get(one.kind, torch.tensor([0, 1, 0, 1]))
    assert computed(one, logits, labels) == computed(one, logits, labels, batches=1)
