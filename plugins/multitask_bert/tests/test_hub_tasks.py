"""Tasks from data sets of the `datasets` library: folders, saved ones, Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ptrain_multitask_bert.data import MultitaskData
from ptrain_multitask_bert.settings_data import HeadSettings, MultitaskSettings, TaskSettings

from plugin_trainer.errors import DataError

datasets = pytest.importorskip("datasets")
MARKED = "<e1>maria</e1> works for <e2>acme</e2>"
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def saved(folder: Path, rows: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """A data set as save_to_disk writes it, all of its rows in the splits train and validation."""
    kinds = datasets.Features(features) if features else None
    split = datasets.Dataset.from_dict(rows, features=kinds)
    both = datasets.DatasetDict({"train": split, "validation": split})
    both.save_to_disk(str(folder))
    return folder


def module(**settings: Any) -> MultitaskData:
    return MultitaskData(
        MultitaskSettings(tasks={"one": TaskSettings(**settings)}, vocabulary_size=300)
    )


def labels(data: MultitaskData, head: str) -> Any:
    (batch,) = data.validation()["one"]  # type: ignore[index]
    return batch[f"labels_{head}"].tolist()


def text() -> Any:
    return datasets.Value("string")


def test_entities_whose_tags_are_declared_by_number(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=TAGS)
    features = {"id": text(), "tokens": datasets.List(text()), "ner_tags": datasets.List(names)}
    folder = saved(
        tmp_path / "set",
        {"id": ["1"], "tokens": [["Maria", "in", "Oslo"]], "ner_tags": [[1, 0, 3]]},
        features,
    )
    data = module(kind="entities", dataset=str(folder))
    assert data.heads()[0].labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert [number for number in labels(data, "entities")[0] if number >= 0] == [3, 0, 1]


def test_relations_whose_labels_are_declared(tmp_path: Path) -> None:
    relation = datasets.ClassLabel(names=["works_for", "none", "unseen"])
    folder = saved(
        tmp_path / "set",
        {"sentence": [MARKED, MARKED], "relation": [1, 0]},
        {"sentence": text(), "relation": relation},
    )
    data = module(kind="relations", dataset=str(folder))
    assert data.heads()[0].labels == ("works_for", "none", "unseen")
    assert labels(data, "relation") == [1, 0]


def test_several_heads_with_declared_labels_some_of_them_not_known(tmp_path: Path) -> None:
    topics = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    folder = saved(
        tmp_path / "set",
        {"text": ["x", "y"], "tone": [1, -1], "topics": [[2, 0], []], "stars": [1.5, None]},
        {
            "text": text(),
            "tone": datasets.ClassLabel(names=["bad", "good"]),
            "topics": topics,
            "stars": datasets.Value("float32"),
        },
    )
    heads = {
        "tone": HeadSettings(),
        "topics": HeadSettings(kind="multi_label"),
        "stars": HeadSettings(kind="regression"),
    }
    data = module(dataset=str(folder), heads=heads)
    assert [head.labels for head in data.heads()] == [("bad", "good"), ("a", "b", "c"), ()]
    assert labels(data, "tone") == [1, -100]
    assert labels(data, "topics") == [[1, 0, 1], [0, 0, 0]]
    assert labels(data, "stars") == pytest.approx([1.5, float("nan")], nan_ok=True)


@pytest.mark.parametrize("of_head", [True, False])
def test_names_of_ones_own_take_the_place_of_those_declared(tmp_path: Path, of_head: bool) -> None:
    folder = saved(
        tmp_path / "set",
        {"text": ["x", "y"], "label": [1, 0]},
        {"text": text(), "label": datasets.ClassLabel(names=["neg", "pos"])},
    )
    names = ("bad", "good")
    heads = {"tone": HeadSettings(labels=names)} if of_head else {}
    data = module(dataset=str(folder), heads=heads, labels=() if of_head else names)
    assert data.heads()[0].labels == names
    assert labels(data, data.heads()[0].name) == [1, 0]


def test_a_parquet_file_and_a_part_of_a_split(tmp_path: Path) -> None:
    rows = {"text": ["x", "y", "z", "w"], "label": ["a", "b", "a", "b"]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    data = module(train=str(path), validation="last 2")
    assert data.heads()[0].labels == ("a", "b") and labels(data, "label") == [0, 1]
    folder = saved(tmp_path / "set", rows)
    data = module(dataset=str(folder), train="train[:75%]", validation="train[75%:]")
    assert labels(data, "label") == [1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": "trian"}, "data_settings.tasks.one.train: "),
        ({"subset": "x"}, "data_settings.tasks.one.subset: "),
        ({"kind": "entities"}, "which column has the tokens?"),
        ({"label": "lable"}, "no column 'lable' for the label; did you mean label?"),
    ],
)
def test_what_is_wrong_names_the_settings_of_the_task(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    folder = saved(tmp_path / "set", {"text": ["x", "y"], "label": ["a", "b"]})
    with pytest.raises(DataError) as caught:
        module(dataset=str(folder), **settings)
    assert said in str(caught.value)
