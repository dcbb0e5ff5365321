"""The loss of a task, against torch's own and against itself in smaller batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.losses import task_loss
from torch import Tensor
from torch.nn import functional

ROWS, TOKENS = 6, 5


def head(kind: Any, name: str = "answer", **more: Any) -> Head:
    labels = {"regression": ()}.get(kind, ("a", "b", "c"))
    return Head(task="task", name=name, kind=kind, labels=labels, **more)


def logits_for(kind: str) -> Tensor:
    shape = {"tokens": (ROWS, TOKENS, 3), "regression": (ROWS,)}.get(kind, (ROWS, 3))
    return torch.randn(*shape, requires_grad=True)


def labels_for(kind: str) -> Tensor:
    """Some of them missing, in a way that no two rows have alike."""
    if kind == "regression":
        labels = torch.randn(ROWS)
        labels[[1, 4]] = math.nan
        return labels
    if kind == "multi_label":
        labels = torch.randint(2, (ROWS, 3)).float()
        labels[0, 1] = -100
        labels[2] = math.nan
        return labels
    if kind == "tokens":
        labels = torch.randint(3, (ROWS, TOKENS))
        labels[0, 1:] = -100
        labels[3] = -100
        return labels
    labels = torch.randint(3, (ROWS,))
    labels[[0, 5]] = -100
    return labels


def loss_of(*parts: tuple[Head, Tensor, Tensor | None], rows: slice | None = None) -> Any:
    """The loss of heads, their logits and their labels, over some of the rows."""
    rows = rows or slice(None)
    return task_loss(
        [head for head, _, _ in parts],
        logits={head.name: logits[rows] for head, logits, _ in parts},
        labels={head.name: labels[rows] for head, _, labels in parts if labels is not None},
        class_weights={
            head.name: torch.tensor(head.class_weights) if head.class_weights else None
            for head, _, _ in parts
        },
    )


KINDS = ("single_label", "multi_label", "tokens", "relation", "regression")


@pytest.mark.parametrize("kind", ["single_label", "relation", "tokens"])
def test_of_one_label_each_it_is_the_cross_entropy_over_the_labelled(kind: str) -> None:
    logits, labels = logits_for(kind), labels_for(kind)
    found = loss_of((head(kind), logits, labels))
    expected = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    torch.testing.assert_close(found["loss"], expected)
    assert found["count"] == (labels != -100).sum()
    assert found["parts"] == {}  # one head's part would be the loss again


def test_of_several_labels_it_is_the_mean_of_the_known_ones_of_each_text() -> None:
    logits, labels = logits_for("multi_label"), labels_for("multi_label")
    found = loss_of((head("multi_label"), logits, labels))
    rows = []
    for row in (0, 1, 3, 4, 5):
        known = [0, 2] if row == 0 else [0, 1, 2]
        rows.append(
            functional.binary_cross_entropy_with_logits(logits[row, known], labels[row, known])
        )
    torch.testing.assert_close(found["loss"], torch.stack(rows).mean())
    assert found["count"] == 5


def test_of_a_number_it_is_the_squared_error_of_the_known_ones() -> None:
    logits, labels = logits_for("regression"), labels_for("regression")
    found = loss_of((head("regression"), logits, labels))
    known = [0, 2, 3, 5]
    torch.testing.assert_close(found["loss"], functional.mse_loss(logits[known], labels[known]))
    assert found["count"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_two_batches_weigh_as_one_by_their_counts(kind: str) -> None:
    part = (head(kind), logits_for(kind), labels_for(kind))
    whole, first, second = (loss_of(part, rows=rows) for rows in ROWS_OF)
    joined = (first["loss"] * first["count"] + second["loss"] * second["count"]) / whole["count"]
    torch.testing.assert_close(joined, whole["loss"])


ROWS_OF = (slice(0, ROWS), slice(0, 2), slice(2, ROWS))


def test_two_batches_weigh_as_one_with_heads_of_all_kinds_too() -> None:
    parts = [(head(kind, name=kind), logits_for(kind), labels_for(kind)) for kind in KINDS]
    whole, first, second = (loss_of(*parts, rows=rows) for rows in ROWS_OF)
    joined = (first["loss"] * first["count"] + second["loss"] * second["count"]) / whole["count"]
    torch.testing.assert_close(joined, whole["loss"])
    assert whole["count"] == ROWS


def test_parts_are_weighted_and_add_up_to_the_loss() -> None:
    one, other = head("single_label", "one", weight=0.25), head("regression", "other", weight=3.0)
    logits = {"one": logits_for("single_label"), "other": logits_for("regression")}
    labels = {"one": torch.tensor([0, 1, 2, 0, 1, 2]), "other": torch.randn(ROWS)}
    found = loss_of(*((h, logits[h.name], labels[h.name]) for h in (one, other)))
    expected = {
        "one": 0.25 * functional.cross_entropy(logits["one"], labels["one"]),
        "other": 3.0 * functional.mse_loss(logits["other"], labels["other"]),
    }
    torch.testing.assert_close(dict(found["parts"]), expected)
    torch.testing.assert_close(found["loss"], sum(expected.values()))
    assert found["count"] == ROWS


def test_a_weight_of_0_is_off() -> None:
    logits = logits_for("single_label")
    loss_of((head("single_label", weight=0.0), logits, labels_for("single_label")))[
        "loss"
    ].backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_any_label_is_0_of_0_items_and_can_be_differentiated(kind: str) -> None:
    logits, labels = logits_for(kind), labels_for(kind)
    missing = math.nan if labels.is_floating_point() else -100
    found = loss_of((head(kind), logits, torch.full_like(labels, missing)))
    assert found["loss"].item() == 0.0
    assert found["count"] == 0
    found["loss"].backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_head_that_the_batch_has_no_labels_for_adds_nothing() -> None:
    answered, other = logits_for("single_label"), logits_for("multi_label")
    labels = labels_for("single_label")
    alone = loss_of((head("single_label"), answered, labels))
    both = loss_of(
        (head("single_label"), answered, labels), (head("multi_label", "other"), other, None)
    )
    assert both["loss"] == alone["loss"]
    assert both["count"] == alone["count"]
    assert both["parts"]["other"] == 0.0
    both["loss"].backward()
    assert other.grad is None  # so that the optimizer does not move it either


def test_without_labels_for_any_head_there_is_no_loss() -> None:
    assert loss_of((head("tokens"), logits_for("tokens"), None)) == {}


@pytest.mark.parametrize("kind", ["single_label", "tokens"])
def test_class_weights_scale_each_items_loss_and_not_the_count(kind: str) -> None:
    weights = (0.5, 2.0, 0.0)
    logits, labels = logits_for(kind), labels_for(kind)
    found = loss_of((head(kind, class_weights=weights), logits, labels))
    flat, targets = logits.flatten(0, -2), labels.flatten()
    losses = functional.cross_entropy(flat, targets, reduction="none")
    scale = torch.tensor([weights[label] if label >= 0 else 0.0 for label in targets.tolist()])
    torch.testing.assert_close(found["loss"], (losses * scale).sum() / (targets >= 0).sum())


def test_class_weights_of_several_labels_scale_each_labels_part() -> None:
    logits, labels = logits_for("multi_label"), torch.ones(ROWS, 3)
    found = loss_of((head("multi_label", class_weights=(1.0, 0.0, 3.0)), logits, labels))
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(found["loss"], (losses * torch.tensor([1.0, 0.0, 3.0])).mean())


def test_a_long_text_counts_once_where_other_heads_ask_the_whole_text() -> None:
    tokens, texts = logits_for("tokens"), logits_for("single_label")
    labels = torch.randint(3, (ROWS, TOKENS))
    labels[0, 1:] = -100
    found = loss_of(
        (head("tokens", "tags"), tokens, labels),
        (head("single_label", "topic"), texts, torch.zeros(ROWS).long()),
    )
    by_row = [
        functional.cross_entropy(tokens[row], labels[row]) for row in range(ROWS)
    ]  # each a mean over the row's own tokens
    torch.testing.assert_close(found["parts"]["tags"], torch.stack(by_row).mean())
    assert found["count"] == ROWS
