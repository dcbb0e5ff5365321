"""Data sets of the `datasets` library: Parquet files, folders, saved ones, and what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ptrain_dactbert.data import TextClassification

from plugin_trainer.data.texts.reading import NO_TEXT
from plugin_trainer.errors import DataError, MissingExtra, PtrainError

datasets = pytest.importorskip("datasets")

MakeData = Callable[..., TextClassification]

TEXTS = ("good", "dull", "so so", "fine", "warm", "long")
NUMBERS = (1, 0, 0, 1, 1, 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(columns: Mapping[str, Any], *, names: list[str] | None = None) -> Any:
    """A data set; with `names` its label is a ClassLabel."""
    made = datasets.Dataset.from_dict(dict(columns))
    return made.cast_column("label", datasets.ClassLabel(names=names)) if names else made


def reviews(*, names: list[str] | None = None, **changes: Any) -> Any:
    return table({"idx": range(6), "sentence": TEXTS, "label": NUMBERS} | changes, names=names)


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write a data set as a Parquet file."""

    def to_file(name: str, rows: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(path)
        return path

    return to_file


@pytest.fixture
def folder(parquet: Callable[[str, Any], Path]) -> Path:
    """A folder with a training split in two files, a validation and an unlabelled test split."""
    names = ["neg", "pos"]
    for part in range(2):
        parquet(f"films/train-0000{part}-of-00002.parquet", reviews(names=names))
    parquet("films/test.parquet", reviews(names=names, label=[-1] * 6))
    return parquet("films/validation.parquet", reviews(names=names)).parent


def labels_of(loader: Any) -> list[int]:
    """The labels in the order of the rows."""
    pairs = [
        (int(row), int(label))
        for batch in loader
        for row, label in zip(batch["row"], batch["labels"], strict=True)
    ]
    return [label for _, label in sorted(pairs)]


# ------------------------------------------------------------------------------------- parquet


def test_a_parquet_file_is_a_training_file(make_data: MakeData, parquet: Any) -> None:
    path = parquet("train.parquet", reviews())
    data = make_data(train=str(path), validation=str(path))
    assert data.label_names == ("0", "1")
    assert labels_of(data.train()) == list(NUMBERS)
    assert labels_of(data.validation()) == list(NUMBERS)


def test_the_names_of_a_class_label_become_the_label_names(
    make_data: MakeData, parquet: Any
) -> None:
    path = parquet("train.parquet", reviews(names=["pos", "neg"]))
    data = make_data(train=str(path))
    assert data.label_names == ("pos", "neg")
    assert labels_of(data.train()) == list(NUMBERS)
    renamed = make_data(train=str(path), labels=("good", "bad"))
    assert labels_of(renamed.train()) == list(NUMBERS)
    turned = make_data(train=str(path), labels=("neg", "pos"))
    assert labels_of(turned.train()) == [1 - number for number in NUMBERS]


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (["y", "n", "n", "y", "y", "n"], ("n", "y")),
        ([True, False, False, True, True, False], ("false", "true")),
        ([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], ("0", "1")),
    ],
)
def test_labels_of_any_kind_that_names_a_class(
    label: list[Any], names: tuple[str, str], make_data: MakeData, parquet: Any
) -> None:
    data = make_data(train=str(parquet("train.parquet", reviews(label=label))))
    assert data.label_names == names
    assert labels_of(data.train()) == list(NUMBERS)


def test_difficulty_comes_from_a_column(make_data: MakeData, parquet: Any) -> None:
    path = parquet("train.parquet", reviews())
    (batch,) = make_data(train=str(path), difficulty="idx").train()
    assert batch["difficulty"].tolist() == batch["row"].tolist()


def test_without_the_package_the_extra_is_named(
    make_data: MakeData, parquet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet("train.parquet", reviews())
    monkeypatch.setitem(sys.modules, "datasets", None)
    for settings in ({"train": str(path)}, {"dataset": "glue"}):
        with pytest.raises(MissingExtra, match=r"pip install datasets"):
            make_data(**settings)


def test_a_parquet_file_that_is_none_is_named(make_data: MakeData, write: Any) -> None:
    with pytest.raises(DataError, match=r"data_settings\.train: .* is no Parquet file"):
        make_data(train=str(write("a.parquet", "text\tlabel\n")))
    with pytest.raises(DataError, match=r"nowhere\.parquet is not there"):
        make_data(train="nowhere.parquet")


# ------------------------------------------------------------------------------------- folders


def test_a_folder_of_files_is_a_data_set_with_splits(make_data: MakeData, folder: Path) -> None:
    data = make_data(dataset=str(folder), train="train", batch_size=12)
    assert data.label_names == ("neg", "pos")
    assert data.describe() == "12 train, 6 validation; labels neg, pos"
    assert labels_of(data.train()) == [*NUMBERS, *NUMBERS]
    assert labels_of(data.validation()) == list(NUMBERS)
    assert data.test() is None


def test_the_default_of_a_file_means_the_split_train(make_data: MakeData, folder: Path) -> None:
    assert len(make_data(dataset=str(folder), train="builtin:negation").train().dataset) == 12


def test_a_part_of_a_split_is_written_as_datasets_has_it(make_data: MakeData, folder: Path) -> None:
    data = make_data(dataset=str(folder), train="train[2:5]+validation[:1]", validation="train[:2]")
    assert labels_of(data.train()) == [*NUMBERS[2:5], NUMBERS[0]]
    assert labels_of(data.validation()) == list(NUMBERS[:2])


def test_folders_of_csv_and_jsonl_are_data_sets_too(
    make_data: MakeData, write: Any, jsonl: Any
) -> None:
    write("csv/train.csv", "sentence,label\ngood,pos\ndull,neg\n")
    jsonl("jsonl/train.jsonl", {"text": "good", "label": "pos"}, {"text": "dull", "label": "neg"})
    for kind in ("csv", "jsonl"):
        path = write(f"{kind}/README.md", "").parent
        data = make_data(dataset=str(path), train="train")
        assert data.label_names == ("neg", "pos")
        assert labels_of(data.train()) == [1, 0]


def test_what_save_to_disk_wrote_is_loaded(make_data: MakeData, tmp_path: Path) -> None:
    rows = reviews(names=["neg", "pos"])
    datasets.DatasetDict(train=rows, dev=rows.select(range(2))).save_to_disk(tmp_path / "both")
    data = make_data(dataset=str(tmp_path / "both"), train="train", validation="dev")
    assert labels_of(data.validation()) == list(NUMBERS[:2])
    rows.save_to_disk(tmp_path / "one")
    data = make_data(dataset=str(tmp_path / "one"), train="train[:4]", validation="train[4:]")
    assert labels_of(data.train()) == list(NUMBERS[:4])


def test_a_subset_is_one_of_several(make_data: MakeData, folder: Path) -> None:
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: short\n  data_files:\n  - split: train\n    path: validation.parquet\n"
        "- config_name: long\n  data_files:\n  - split: train\n    path: train-*.parquet\n---\n"
    )
    data = make_data(dataset=str(folder), subset="long", train="train")
    assert len(data.train().dataset) == 12
    with pytest.raises(DataError, match="has no subset 'lond'; did you mean long") as caught:
        make_data(dataset=str(folder), subset="lond", train="train")
    assert caught.value.hint == ("subsets: short, long",)
    with pytest.raises(DataError, match=r"data_settings\.subset is not set, .* has several"):
        make_data(dataset=str(folder), train="train")


# ------------------------------------------------------------------------------------- refused


def test_an_unknown_split_is_answered_with_the_known_ones(
    make_data: MakeData, folder: Path
) -> None:
    with pytest.raises(DataError, match=r"data_settings\.validation: .* no split 'vali'") as caught:
        make_data(dataset=str(folder), train="train", validation="vali")
    assert caught.value.hint == ("splits: train, validation, test",)
    with pytest.raises(DataError, match="no split 'vali"):
        make_data(dataset=str(folder), train="train", validation="vali[:2]")


def test_a_missing_column_is_answered_with_the_columns(make_data: MakeData, folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'sentense' for the text; did") as caught:
        make_data(dataset=str(folder), train="train", text="sentense")
    assert caught.value.hint[0] == "columns: idx, sentence, label"


def test_no_usual_label_is_answered_with_the_columns(make_data: MakeData, parquet: Any) -> None:
    path = parquet("a.parquet", reviews().rename_column("label", "stars"))
    with pytest.raises(DataError, match="no column 'label' for the label") as caught:
        make_data(train=str(path))
    assert caught.value.hint[0] == "columns: idx, sentence, stars"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0.5] * 6}, "it knows no regression"),
        ({"label": [[0, 1]] * 6}, r"the label in label is \[0, 1\], not a name or a number"),
        ({"sentence": [None] * 6}, "the text in sentence is None, not a string"),
    ],
)
def test_cells_of_another_kind_are_refused(
    changes: Mapping[str, Any], message: str, make_data: MakeData, parquet: Any
) -> None:
    path = parquet("a.parquet", reviews(**changes))
    with pytest.raises(DataError, match=message):
        make_data(train=str(path))


def test_a_folder_that_holds_no_data_is_named(make_data: MakeData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data_settings\.dataset: .*empty cannot be read"):
        make_data(dataset=str(tmp_path / "empty"))
    with pytest.raises(PtrainError, match=r"data_settings\.dataset: there is no folder \./films"):
        make_data(dataset="./films")


def test_a_subset_without_a_data_set_is_refused(make_data: MakeData) -> None:
    with pytest.raises(DataError, match=r"data_settings\.subset is set, and .*dataset is not"):
        make_data(subset="sst2")


# ---------------------------------------------------------------------------------- unlabelled


def test_a_split_without_labels_is_refused_as_a_whole(make_data: MakeData, folder: Path) -> None:
    with pytest.raises(DataError, match=r"films\[test\]: none of its 6 rows has a label"):
        make_data(dataset=str(folder), train="train", test="test")


@pytest.mark.parametrize("missing", [-1, None])
def test_rows_without_a_label_are_refused_or_dropped(
    missing: int | None, make_data: MakeData, parquet: Any
) -> None:
    path = parquet("a.parquet", reviews(label=[1, missing, 0, missing, 1, 0]))
    with pytest.raises(DataError, match="2 rows cannot be used") as caught:
        make_data(train=str(path))
    assert caught.value.hint[0].startswith(f"{path}:2: no label (label is ")
    assert caught.value.hint[-1].endswith('data_settings.unlabelled = "drop"')
    data = make_data(train=str(path), unlabelled="drop")
    assert sorted(batch_rows(data)) == [0, 1, 2, 3]
    assert sorted(labels_of(data.train())) == [0, 0, 1, 1]


def test_a_missing_text_is_answered_with_what_helps(make_data: MakeData, parquet: Any) -> None:
    sentences = [None, "dull", "warm", None, "so so", "fine"]
    path = parquet("a.parquet", reviews(sentence=sentences, label=[1, 0, 1, None, None, 0]))
    with pytest.raises(DataError, match="3 rows cannot be used") as caught:
        make_data(train=str(path))
    assert caught.value.hint[0] == f"{path}:1: the text in sentence is None, not a string"
    assert caught.value.hint[3] == NO_TEXT
    with pytest.raises(DataError, match=r":1: the text in sentence is None") as caught:
        make_data(train=str(path), unlabelled="drop")  # which the fourth row needs no text for
    assert caught.value.hint[0] == NO_TEXT


def batch_rows(data: TextClassification) -> list[int]:
    return [int(row) for batch in data.train() for row in batch["row"]]


def test_a_label_of_minus_one_that_is_listed_is_a_label(make_data: MakeData, parquet: Any) -> None:
    path = parquet("a.parquet", reviews(label=[1, -1, -1, 1, 1, -1]))
    data = make_data(train=str(path), labels=("-1", "1"))
    assert labels_of(data.train()) == list(NUMBERS)
