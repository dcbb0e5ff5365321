"""Sentence pairs: two texts a row in training, evaluation, assets and prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_dactbert.data import TextClassification

from plugin_trainer.errors import DataError

MakeData = Callable[..., TextClassification]

PAIRS = (
    ("it rains all day", "it is wet", "yes"),
    ("nobody came", "the hall was full of people", "no"),
    ("she sings", "she sings well", "maybe"),
)


@pytest.fixture
def pairs_file(write: Callable[..., Path]) -> Path:
    """Three labelled pairs, as TSV with a header."""
    lines = ["premise\thypothesis\tlabel", *("\t".join(pair) for pair in PAIRS)]
    return write("pairs.tsv", "".join(f"{line}\n" for line in lines))


@pytest.fixture
def data(make_data: MakeData, pairs_file: Path) -> TextClassification:
    return make_data(train=str(pairs_file), validation=str(pairs_file))


def by_row(loader: Any) -> dict[int, dict[str, list[int]]]:
    """The tokens and types of each row, without padding."""
    rows = {}
    for batch in loader:
        for place, row in enumerate(batch["row"].tolist()):
            length = int(batch["attention_mask"][place].sum())
            rows[row] = {
                key: batch[key][place, :length].tolist()
                for key in ("input_ids", "token_type_ids")
                if key in batch
            }
    return rows


def test_both_texts_are_in_the_tokens_and_told_apart_by_type(data: TextClassification) -> None:
    assert data.pairs
    assert data.describe() == "3 train, 3 validation pairs; labels maybe, no, yes"
    tokenizer = data.tokenizer
    for loader in (data.train(), data.validation()):
        row = by_row(loader)[0]
        first, second = tokenizer("it rains all day"), tokenizer("it is wet")
        expected = first["input_ids"] + second["input_ids"][1:]  # one [CLS], two [SEP]
        assert row["input_ids"] == expected
        assert row["token_type_ids"] == [0] * len(first["input_ids"]) + [1] * (
            len(expected) - len(first["input_ids"])
        )


def test_the_longer_text_is_cut_first(make_data: MakeData, write: Callable[..., Path]) -> None:
    long = " ".join(["word"] * 30)
    rows = f"sentence1\tsentence2\tlabel\n{long}\tshort\t0\nshort\t{long}\t1\n"
    data = make_data(train=str(write("long.tsv", rows)), max_tokens=12)
    short = data.tokenizer("short", add_special_tokens=False)["input_ids"]
    for row in by_row(data.train()).values():
        assert len(row["input_ids"]) == 12
        assert " ".join(map(str, short)) in " ".join(map(str, row["input_ids"]))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_every_kind_of_encoder_learns_from_pairs(
    kind: str,
    pairs_file: Path,
    make_data: MakeData,
    make_encoder: Callable[[str], Path],
    make_model: Callable[..., Any],
) -> None:
    folder = str(make_encoder(kind))
    data = make_data(train=str(pairs_file), tokenizer=folder)
    (batch,) = data.train()
    # As a tokenizer of BERT's gives them, whatever the encoder has types for.
    types = batch["attention_mask"].cumsum(-1) > 3
    outputs = make_model(data=data, encoder=folder)(**batch, token_type_ids=types.long())
    outputs["loss"].backward()
    assert outputs["logits"].shape == (3, 3)
    assert torch.isfinite(outputs["loss"])


def test_the_types_reach_an_encoder_that_has_them(
    data: TextClassification, make_model: Callable[..., Any]
) -> None:
    model = make_model(data=data, dropout=0.0).eval()
    (batch,) = data.validation()
    with torch.no_grad():
        told = model(**batch)["logits"]
        batch["token_type_ids"].zero_()
        untold = model(**batch)["logits"]
    assert not torch.equal(told, untold)


def test_prediction_takes_two_texts_with_a_tab(data: TextClassification) -> None:
    lines = [f"{first}\t{second}\n" for first, second, _ in PAIRS]
    assert by_row(data.predict(lines)) == by_row(data.validation())


def test_lines_without_a_tab_are_all_named(data: TextClassification) -> None:
    with pytest.raises(DataError, match="the input: 2 rows cannot be used") as caught:
        list(data.predict(["a\tb", "it rains", "c\td", "a\tb\tc"]))
    assert caught.value.hint == (
        "line 2: no tab in 'it rains'",
        "line 4: 2 tabs in 'a b c'",
        "the run was trained on pairs: a line is first<TAB>second",
    )


def test_lines_of_a_later_part_keep_their_numbers(data: TextClassification) -> None:
    class Lines(list[str]):
        first_line = 1025

    with pytest.raises(DataError, match="line 1026: no tab"):
        list(data.predict(Lines(["a\tb", "it rains"])))


def test_a_single_text_may_hold_a_tab(make_data: MakeData) -> None:
    (batch,) = make_data().predict(["warm\tfilm"])
    assert "labels" not in batch


def test_assets_remember_that_it_is_a_task_of_pairs(
    data: TextClassification, make_data: MakeData, tmp_path: Path
) -> None:
    lines = [f"{first}\t{second}" for first, second, _ in PAIRS]
    (tmp_path / "pairs").mkdir()
    data.save_assets(tmp_path / "pairs")
    again = TextClassification.from_assets(data.settings, tmp_path / "pairs")
    assert by_row(again.predict(lines)) == by_row(data.predict(lines))
    (tmp_path / "single").mkdir()
    single = make_data()
    single.save_assets(tmp_path / "single")
    assert json.loads((tmp_path / "single/labels.json").read_text()) == {"labels": ["0", "1"]}
    assert not TextClassification.from_assets(single.settings, tmp_path / "single").pairs


def test_single_texts_do_not_fit_a_task_of_pairs(
    make_data: MakeData, pairs_file: Path, write: Callable[..., Path]
) -> None:
    single = write("single.tsv", "text\tlabel\nit rains\tyes\n")
    with pytest.raises(DataError, match=r"single\.tsv:2: one text, where the training data have p"):
        make_data(train=str(pairs_file), validation=str(single))
    with pytest.raises(DataError, match=r"pairs\.tsv:2: a pair of texts, where the .* single"):
        make_data(
            train=str(write("t.tsv", "a\tyes\nb\tno\n")),
            validation=str(pairs_file),
            labels=("yes", "no", "maybe"),
        )


def test_rows_of_both_kinds_in_one_file_are_refused(
    make_data: MakeData, jsonl: Callable[..., Path]
) -> None:
    mixed = jsonl(
        "mixed.jsonl",
        {"text": "it rains", "label": 0},
        {"premise": "it rains", "hypothesis": "it is wet", "label": 1},
    )
    with pytest.raises(DataError, match=r"mixed\.jsonl:1: one text, where the training data have"):
        make_data(train=str(mixed))


def test_a_parquet_file_holds_pairs_too(make_data: MakeData, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = dict(zip(("premise", "hypothesis", "label"), zip(*PAIRS, strict=True), strict=True))
    path = tmp_path / "pairs.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(path)
    data = make_data(train=str(path))
    assert data.pairs
    assert data.label_names == ("maybe", "no", "yes")
    alone = make_data(train=str(path), text="hypothesis")
    assert not alone.pairs
