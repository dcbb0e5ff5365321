"""Batches of any shape: their labels, their rows, and their way to a device."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch

from plugin_trainer.data.batches import count_rows, count_valid, find_labels, move_batch
from plugin_trainer.errors import DataError

META = torch.device("meta")

Pair = namedtuple("Pair", "features labels")


class Movable:
    """Moves itself, as the batches of some libraries do."""

    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Movable(device)


class Encoding(dict):
    """A mapping of a class of its own."""


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("keys", "configured", "expected"),
    [
        (["labels", "label", "labels_a", "x"], "x", "x"),
        (["labels", "label", "labels_a", "x"], "", "labels"),
        (["label", "labels_a", "x"], "", "label"),
        (["labels_a", "x"], "", "labels_"),
    ],
)
def test_labels_are_the_configured_key_else_labels_else_label_else_those_of_heads(
    keys, configured, expected
):
    key, _ = find_labels({name: name.upper() for name in keys}, key=configured)
    assert key == expected


def test_the_labels_of_heads_come_by_head():
    assert find_labels({"x": 0, "labels_a": 1, "labels_b": 2}) == ("labels_", {"a": 1, "b": 2})


def test_the_last_entry_of_a_tuple_is_its_labels():
    assert find_labels((1, 2, 3)) == ("", 3)
    assert find_labels([1, 2]) == ("", 2)
    assert find_labels(Pair(1, 2)) == ("", 2)


@pytest.mark.parametrize("batch", [{"x": 1}, (1,), [], torch.zeros(3), {3: 1}])
def test_a_batch_may_have_no_labels(batch):
    assert find_labels(batch) is None


def test_a_configured_key_that_is_not_there_names_the_keys_that_are():
    with pytest.raises(DataError, match="no labels under 'y'; it has: x, labels") as caught:
        find_labels({"x": 1, "labels": 2}, key="y")
    assert caught.value.hint == ("set `label` to one of these",)


# ------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (torch.tensor([0, 1, -100, 2]), 3),
        (torch.tensor([[0, -100], [-100, -100]]), 1),
        (torch.tensor([-100, -100]), 0),
        (torch.tensor(3), 1),
        (torch.zeros(4, 7), 4),
        (torch.zeros(4, 7, dtype=torch.bool), 4),
        ({"a": torch.zeros(5), "b": torch.zeros(5)}, 5),
        ([0, 1], 1),
    ],
)
def test_class_labels_count_where_they_are_not_ignored_and_others_by_row(labels, count):
    assert int(count_valid(labels)) == count


def test_counting_labels_does_not_read_the_device():
    assert count_valid(torch.zeros(4, dtype=torch.long, device="meta")).device == META


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ({"scale": torch.tensor(2.0), "x": torch.zeros(5, 2)}, 5),
        ((torch.zeros(3), torch.zeros(4)), 3),
        ([{"a": [torch.zeros(2)]}], 2),
        (torch.zeros(6), 6),
        ({"text": "no tensor"}, 1),
        (torch.tensor(1.0), 1),
    ],
)
def test_rows_are_the_first_axis_of_the_first_tensor_that_has_one(batch, rows):
    assert count_rows(batch) == rows


# ------------------------------------------------------------------------------------------ moving


def test_every_tensor_moves_however_deep_and_the_shape_of_the_batch_stays():
    batch = {
        "pair": Pair(torch.zeros(2), (torch.zeros(3), "text")),
        "list": [torch.zeros(1), {"deep": torch.zeros(1)}, None, 3],
        "ordered": OrderedDict(a=torch.zeros(1)),
        "encoding": Encoding(ids=torch.zeros(1)),
        "own": Movable(),
    }
    moved = move_batch(batch, META)
    assert type(moved) is dict and list(moved) == list(batch)
    assert type(moved["pair"]) is Pair
    assert moved["pair"].features.device == META
    assert moved["pair"].labels[0].device == META and moved["pair"].labels[1] == "text"
    assert moved["list"][1]["deep"].device == META and moved["list"][2:] == [None, 3]
    assert type(moved["ordered"]) is OrderedDict and moved["ordered"]["a"].device == META
    assert type(moved["encoding"]) is Encoding and moved["encoding"]["ids"].device == META
    assert moved["own"].device == META
    assert batch["pair"].features.device.type == "cpu"


def test_a_tensor_that_is_there_already_is_not_copied():
    tensor = torch.zeros(2)
    assert move_batch([tensor], torch.device("cpu"))[0] is tensor


def test_what_has_no_tensor_is_passed_through():
    thing = SimpleNamespace(a=1)
    assert move_batch(thing, META) is thing
