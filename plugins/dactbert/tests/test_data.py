"""The data module: batches, labels, assets, and what a user is told before the first step."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import TextClassificationSettings
from torchmetrics import Metric

from plugin_trainer.data.module import DataModule
from plugin_trainer.data.texts.tokenized import tokenize
from plugin_trainer.data.texts.tokenizers import trained_tokenizer
from plugin_trainer.errors import DataError, PtrainError

MakeData = Callable[..., TextClassification]
Write = Callable[..., Path]


def rows_of(batches: Any) -> list[tuple[int, list[int]]]:
    """(row, its token ids without padding) for every row of some batches."""
    rows = []
    for batch in batches:
        lengths = batch["attention_mask"].sum(-1).tolist()
        for row, ids, length in zip(batch["row"], batch["input_ids"], lengths, strict=True):
            rows.append((int(row), ids[:length].tolist()))
    return rows


def test_it_keeps_to_the_data_module_contract(make_data: MakeData) -> None:
    data = make_data()
    assert isinstance(data, DataModule)
    assert data.validation() is None
    assert data.test() is None
    assert all(isinstance(metric, Metric) for metric in data.metrics().values())


def test_a_batch_is_padded_to_its_own_longest_text(make_data: MakeData) -> None:
    (batch,) = make_data().train()
    lengths_B = batch["attention_mask"].sum(-1)
    assert batch["input_ids"].shape == (6, int(lengths_B.max()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "row"}
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert (padding == make_data().pad_id).all()


def test_segments_come_along_if_the_tokenizer_gives_them(
    make_data: MakeData, make_encoder: Callable[[str], Path]
) -> None:
    folder = make_encoder("bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (batch,) = make_data(tokenizer=str(folder)).train()
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_training_is_shuffled_and_evaluation_is_in_order(
    make_data: MakeData, train_file: Path
) -> None:
    data = make_data(validation=str(train_file), evaluation_batch_size=4)
    ordered = rows_of(data.validation())
    assert [row for row, _ in ordered] == list(range(6))
    shuffled = rows_of(data.train())
    assert sorted(shuffled) == ordered
    assert any(rows_of(data.train()) != ordered for _ in range(5))


def test_workers_give_the_same_batches(make_data: MakeData, train_file: Path) -> None:
    settings = {"validation": str(train_file), "evaluation_batch_size": 2}
    alone = make_data(**settings).validation()
    helped = make_data(**settings, num_workers=2).validation()
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_collate_and_data_set_can_be_pickled(make_data: MakeData) -> None:
    loader = make_data().train()
    texts, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert torch.equal(collate([texts[1]])["input_ids"], loader.collate_fn([texts[1]])["input_ids"])


def test_texts_are_cut_to_max_tokens(make_data: MakeData) -> None:
    (batch,) = make_data(max_tokens=5).train()
    assert batch["input_ids"].shape[1] == 5


def test_an_empty_text_still_has_a_token() -> None:
    tokenizer = trained_tokenizer(["a b"], vocabulary_size=300)
    tokenizer.backend_tokenizer.post_processor = None  # one without [CLS] and [SEP]
    texts = tokenize(["", "a b"], tokenizer=tokenizer, max_tokens=8)
    assert [len(texts[row]["input_ids"]) for row in range(2)] == [1, 2]


def test_the_same_texts_train_the_same_tokenizer() -> None:
    texts = ["a warm film", "the warmest of films", "filming"] * 3
    one, other = (trained_tokenizer(texts, vocabulary_size=300).get_vocab() for _ in range(2))
    assert one == other


# -------------------------------------------------------------------------------------- labels


def test_numbers_stay_themselves_and_names_are_sorted(make_data: MakeData, write: Write) -> None:
    assert make_data().label_names == ("0", "1")
    named = make_data(train=str(write("n.tsv", "good\tpos\ndull\tneg\nso\tmid\n")))
    assert named.label_names == ("mid", "neg", "pos")
    (batch,) = named.train()
    by_row = dict(zip(batch["row"].tolist(), batch["labels"].tolist(), strict=True))
    assert by_row == {0: 2, 1: 1, 2: 0}


def test_the_order_of_the_labels_can_be_set(make_data: MakeData) -> None:
    data = make_data(labels=("bad", "good"))
    assert data.label_names == ("bad", "good")
    (batch,) = data.train()
    assert sorted(batch["labels"].tolist()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("labels", [("one",), ("a", "a")])
def test_a_list_of_labels_needs_two_different_ones(
    labels: tuple[str, ...], make_data: MakeData
) -> None:
    with pytest.raises(DataError, match=r"data_settings\.labels"):
        make_data(labels=labels)


def test_texts_in_the_label_column_are_refused_unless_they_are_listed(
    make_data: MakeData, write: Write
) -> None:
    answers = [f"answer {number}" for number in range(60)]
    path = write("a.tsv", "".join(f"is it so\t{answer}\n" for answer in answers))
    with pytest.raises(DataError, match=r"the column of the labels does not look like .* 60 rows"):
        make_data(train=str(path))
    assert make_data(train=str(path), labels=tuple(answers)).label_names == tuple(answers)
    headed = write("b.csv", "asked,good\n" + path.read_text().replace("\t", ","))
    with pytest.raises(DataError, match="column 'good' does not look like labels"):
        make_data(train=str(headed), text="asked", label="good")


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_missing_file_stops_before_the_first_step(split: str, make_data: MakeData) -> None:
    with pytest.raises(DataError, match=rf"data_settings\.{split}: .*nowhere\.tsv is not there"):
        make_data(**{split: "nowhere.tsv"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("good\t2\n", r"dev\.tsv:2: label 2 is outside of the range 0 to 1"),
        ("good\tpos\n", r"dev\.tsv:2: unknown label 'pos'"),
        ("good\n", r"dev\.tsv:2: 1 fields"),
    ],
)
def test_a_broken_line_in_the_validation_file_stops_before_the_first_step(
    line: str, message: str, make_data: MakeData, write: Write
) -> None:
    dev = write("dev.tsv", "dull\t0\n" + line)
    with pytest.raises(DataError, match=message):
        make_data(validation=str(dev))


def test_an_unknown_task_is_answered_with_the_known_one() -> None:
    with pytest.raises(DataError, match="did you mean builtin:negation") as caught:
        TextClassification(TextClassificationSettings(train="builtin:negatoin"))
    assert "generated tasks: builtin:negation" in caught.value.hint


def test_no_training_file_at_all_is_an_error(make_data: MakeData) -> None:
    with pytest.raises(DataError, match=r"data_settings\.train is not set"):
        make_data(train="")


def test_a_tokenizer_folder_that_is_not_there_is_named(make_data: MakeData) -> None:
    with pytest.raises(PtrainError, match=r"data_settings\.tokenizer .*: there is no folder \./no"):
        make_data(tokenizer="./no")


def test_a_folder_without_a_tokenizer_is_named(make_data: MakeData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PtrainError, match="holds no tokenizer"):
        make_data(tokenizer=str(tmp_path / "empty"))


# -------------------------------------------------------------------------- assets, prediction


def test_from_assets_needs_none_of_the_files(
    make_data: MakeData, train_file: Path, tmp_path: Path
) -> None:
    data = make_data(labels=("schlecht", "schön"))
    folder = tmp_path / "assets"
    folder.mkdir()
    data.save_assets(folder)
    train_file.unlink()
    again = TextClassification.from_assets(data.settings, folder)
    assert again.label_names == ("schlecht", "schön")
    assert again.pad_id == data.pad_id
    assert again.vocabulary_size == data.vocabulary_size
    lines = ["a warm film", "", "laughed"]
    assert rows_of(again.predict(lines)) == rows_of(data.predict(lines))
    with pytest.raises(DataError, match="not there"):
        again.train()


def test_a_resumed_run_keeps_its_labels(make_data: MakeData, write: Write, tmp_path: Path) -> None:
    data = make_data()
    data.save_assets(tmp_path)
    other = write("other.tsv", "good\t1\nso\t2\n")
    settings = TextClassificationSettings(train=str(other), max_tokens=32)
    with pytest.raises(DataError, match=r"other\.tsv:2: label 2 is outside"):
        TextClassification.from_assets(settings, tmp_path).train()


def test_prediction_sorts_the_lines_by_length_and_says_which_is_which(make_data: MakeData) -> None:
    data = make_data(evaluation_batch_size=2)
    lines = ["dull\n", "a warm film", "laughed all the way", "", "clever"]
    batches = list(data.predict(lines))
    assert [len(batch["row"]) for batch in batches] == [2, 2, 1]
    rows = rows_of(batches)
    assert [len(ids) for _, ids in rows] == sorted(len(ids) for _, ids in rows)
    assert sorted(int(line) for batch in batches for line in batch["line"]) == [0, 1, 2, 3, 4]
    for row, ids in rows:
        alone = next(iter(data.predict([lines[row]])))
        assert alone["input_ids"][0].tolist() == ids
    assert all("labels" not in batch for batch in batches)
    assert list(data.predict([])) == []


def test_decode_gives_label_probabilities_and_exit_block(make_data: MakeData) -> None:
    data = make_data(labels=("bad", "good"))
    outputs = {
        "logits": torch.tensor([[0.9, 0.1], [0.25, 0.75]]).log(),
        "exit_block": torch.tensor([1, 3]),
    }
    first, second = data.decode(outputs, {})
    assert first["label"] == "bad"
    assert second == {
        "label": "good",
        "probabilities": pytest.approx({"bad": 0.25, "good": 0.75}),
        "exit_block": 3,
    }
    json.dumps([first, second])


# ----------------------------------------------------------------------------------- generated


def test_the_generated_task_has_its_own_validation_part(
    negation_data: TextClassification,
) -> None:
    batch = next(iter(negation_data.validation()))
    assert negation_data.label_names == ("negative", "neutral", "positive")
    assert len(negation_data.train().dataset) == 100
    assert len(negation_data.validation().dataset) == 75
    assert set(batch["difficulty"].tolist()) == {0, 1, 2, 3, 4}
    assert negation_data.test() is None


def test_a_file_never_gets_the_generated_validation_part(make_data: MakeData) -> None:
    assert make_data().validation() is None


def test_difficulty_comes_from_a_column_too(make_data: MakeData, write: Write) -> None:
    path = write("d.csv", "text,label,hops\ngood,1,0\nnot good,0,1\n")
    (batch,) = make_data(train=str(path), difficulty="hops").train()
    assert sorted(batch["difficulty"].tolist()) == [0, 1]


def test_bucketed_batches_have_texts_of_about_one_length(make_data: MakeData) -> None:
    plain, bucketed = make_data(batch_size=2), make_data(batch_size=2, bucketed=True)
    pairs = [sorted(len(ids) for _, ids in rows_of([batch])) for batch in bucketed.train()]
    in_order = [length for pair in sorted(pairs) for length in pair]
    assert in_order == sorted(in_order)
    assert sorted(rows_of(bucketed.train())) == sorted(rows_of(plain.train()))


def test_a_stream_cannot_be_bucketed(make_data: MakeData) -> None:
    data = make_data(streaming=True, bucketed=True, labels=("0", "1"))
    with pytest.raises(DataError, match="a stream is not sorted by length"):
        data.train()
