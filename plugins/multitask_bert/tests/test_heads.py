"""A head that makes no sense is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from ptrain_multitask_bert.heads import Head

from plugin_trainer.errors import PtrainError

GOOD: dict[str, Any] = {
    "task": "mail",
    "name": "spam",
    "kind": "single_label",
    "labels": ("no", "yes"),
}


def test_a_head_is_addressed_by_its_task_and_its_name() -> None:
    head = Head(**GOOD)
    assert (head.address, head.width) == ("mail/spam", 2)
    assert Head(task="mail", name="size", kind="regression").width == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "span"}, "no kind 'span'"),
        ({"task": "a/b"}, "task is named 'a/b'"),
        ({"task": ""}, "task is named ''"),
        ({"name": "v1.5"}, "head is named 'v1.5'"),
        ({"name": "loss"}, "as another metric is"),
        ({"labels": ("no",)}, "its labels are no"),
        ({"labels": ()}, "its labels are none"),
        ({"labels": ("no", "yes", "no")}, "its labels are no, yes, no"),
        ({"kind": "regression"}, "a regression has no labels"),
        ({"class_weights": (1.0,)}, "1 class weights for 2 labels"),
        ({"class_weights": (1.0, -1.0)}, "negative"),
        ({"weight": -0.5}, "negative"),
        ({"threshold": 1.0}, "threshold is 1"),
    ],
)
def test_what_is_no_head_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(PtrainError) as caught:
        Head(**(GOOD | wrong))
    assert says in caught.value.message
    assert caught.value.hint


def test_the_kinds_are_listed_where_one_is_unknown() -> None:
    with pytest.raises(PtrainError) as caught:
        Head(**(GOOD | {"kind": "single_label_classification"}))
    assert "single_label, multi_label, tokens, relation, regression" in str(caught.value)
