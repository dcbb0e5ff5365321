"""What a run evaluates on is checked before its first step, and gone through in order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset as Table
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from plugin_trainer.data.evaluated import evaluation_batches, evaluation_loaders
from plugin_trainer.errors import DataError


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(10))


class Unsized(Dataset):
    def __getitem__(self, index):
        return index


def loaders_of(validation):
    return evaluation_loaders(SimpleNamespace(validation=lambda: validation))


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(Endless(), batch_size=4),
        Endless(),
        TensorDataset(torch.arange(3)),
        Unsized.__new__(type("Sized", (Unsized,), {"__len__": lambda self: 3})),
        [torch.arange(3)],
        Table.from_dict({"x": [1, 2]}),
    ],
)
def test_what_begins_anew_each_time_is_taken_with_a_length_or_without(data):
    assert loaders_of(data) == {"val": data}


def test_only_the_splits_that_are_there_are_evaluated():
    rows = [torch.arange(3)]
    data = SimpleNamespace(validation=lambda: None, test=lambda: rows)
    assert evaluation_loaders(data) == {"test": rows}
    assert evaluation_loaders(SimpleNamespace()) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the validation data is empty"),
        (DataLoader(TensorDataset(torch.zeros(0))), "the validation data is empty"),
        (Table.from_dict({"x": []}), "the validation data is empty"),
        (iter([1, 2]), "the validation data can be iterated only once, and every evaluation needs"),
        ({}, "validation() gave no task"),
        ({"a": [1], "b": []}, "the validation ('b') data is empty"),
        (Unsized(), "the validation data has no length: "),
        (3, "the validation data is a int, which cannot be iterated"),
    ],
)
def test_what_cannot_be_evaluated_on_is_refused_in_words(data, message):
    with pytest.raises(DataError) as caught:
        loaders_of(data)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_data_set_is_gone_through_in_order_and_a_loader_as_it_is():
    rows = TensorDataset(torch.arange(5))
    assert [batch[0].tolist() for batch in evaluation_batches(rows, batch_size=2)] == [
        *([0, 1], [2, 3], [4]),
    ]
    given = DataLoader(rows)
    assert evaluation_batches(given, batch_size=2) is given


def test_a_hugging_face_data_set_is_gone_through_in_batches():
    table = Table.from_dict({"x": [[1.0], [2.0], [3.0]], "labels": [0, 1, 0]}).with_format("torch")
    first, second = evaluation_batches(table, batch_size=2)
    assert first["x"].tolist() == [[1.0], [2.0]] and first["labels"].tolist() == [0, 1]
    assert second["labels"].tolist() == [0]


def test_samples_in_place_of_batches_are_refused():
    table = Table.from_dict({"x": [[1.0], [2.0]], "labels": [0, 1]}).with_format("torch")
    for data in (table.to_iterable_dataset(), [*table]):
        with pytest.raises(DataError, match="the evaluation data gives single samples where"):
            next(iter(evaluation_batches(data, batch_size=2, limit=1)))
    batched = evaluation_batches(table.to_iterable_dataset().batch(2), batch_size=2)
    assert [batch["labels"].tolist() for batch in batched] == [[0, 1]]
