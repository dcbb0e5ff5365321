"""Streamed training data: every row once an epoch, shuffled, and resumed exactly from any place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.streaming import StreamedBatches

from plugin_trainer.data.stream import training_stream
from plugin_trainer.errors import DataError

MakeData = Callable[..., TextClassification]
Build = Callable[..., TextClassification]

COUNT = 47
"""Rows of the stream; no multiple of the batch size, nor of the buffer's."""

SETTINGS = {"streaming": True, "shuffle_buffer": 10, "batch_size": 4, "labels": ("neg", "pos")}

ROWS = [{"text": f"film number {row}", "label": ("neg", "pos")[row % 2]} for row in range(COUNT)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(kind: str, folder: Path) -> dict[str, str]:
    """The rows in a source of that kind; the settings that name it."""
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    if kind == "jsonl":
        path = folder / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind in ("tsv", "csv"):
        path, mark = folder / f"train.{kind}", "\t" if kind == "tsv" else ","
        lines = [f"{row['text']}{mark}{row['label']}\n" for row in ROWS]
        path.write_text("".join(lines))
    elif kind == "parquet":
        path = folder / "train.parquet"
        table.to_parquet(path)
    elif kind == "folder":
        path = folder / "films"
        path.mkdir()
        for part in range(3):
            table.shard(3, part).to_parquet(path / f"train-0000{part}-of-00003.parquet")
        table.select(range(5)).to_parquet(path / "validation.parquet")
    else:
        path = folder / "saved"
        datasets.DatasetDict(train=table, validation=table.select(range(5))).save_to_disk(path)
    return {"dataset" if path.is_dir() else "train": str(path)}


@pytest.fixture(params=["tsv", "csv", "jsonl", "parquet", "folder", "saved"])
def build(request: pytest.FixtureRequest, make_data: MakeData, tmp_path: Path) -> Build:
    """Make the data module over a stream of each kind."""
    named = write_rows(request.param, tmp_path)
    if "dataset" in named:
        named["train"] = "train"
    return lambda **changes: make_data(**(SETTINGS | named | changes))


@pytest.fixture
def stream(make_data: MakeData, tmp_path: Path) -> Build:
    """Make the data module over the folder of three files."""
    named = {"train": "train", **write_rows("folder", tmp_path)}
    return lambda **changes: make_data(**(SETTINGS | named | changes))


def seen(batches: Any) -> list[list[int]]:
    """The row numbers of each batch, counted from 0."""
    return [(batch["line"] - 1).tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def first(batches: Iterator[Any], count: int) -> list[Any]:
    return [next(batches) for _ in range(count)]


# ------------------------------------------------------------------------------------- batches


def test_an_epoch_has_every_row_once_in_full_batches(build: Build) -> None:
    loader = build().train()
    assert isinstance(loader, StreamedBatches)
    assert not hasattr(loader, "__len__")
    epoch = seen(loader)
    assert sorted(flat(epoch)) == list(range(COUNT))
    assert [len(batch) for batch in epoch] == [4] * 11 + [3]
    again = seen(loader)
    assert sorted(flat(again)) == list(range(COUNT))
    assert again != epoch


def test_batches_hold_what_those_of_a_file_in_memory_do(build: Build) -> None:
    texts = {}
    for batch in build().train():
        for place, row in enumerate(batch["line"].tolist()):
            length = int(batch["attention_mask"][place].sum())
            texts[row] = (batch["input_ids"][place, :length].tolist(), int(batch["labels"][place]))
    whole = build(streaming=False, batch_size=COUNT)
    # The tokenizer of a stream is trained on the first rows only: read the others with it too.
    whole_tokenizer = build().tokenizer
    labels = {row["text"]: ("neg", "pos").index(row["label"]) for row in ROWS}
    expected = {
        (tuple(whole_tokenizer(row["text"])["input_ids"]), labels[row["text"]]) for row in ROWS
    }
    assert {(tuple(ids), label) for ids, label in texts.values()} == expected
    assert len(whole.train().dataset) == COUNT


def test_the_buffer_bounds_how_far_a_row_moves(make_data: MakeData, tmp_path: Path) -> None:
    named = write_rows("jsonl", tmp_path)
    order = flat(seen(make_data(**(SETTINGS | named)).train()))
    assert order != sorted(order)
    assert all(row // 10 == place // 10 for place, row in enumerate(order))
    plain = make_data(**(SETTINGS | named | {"shuffle_buffer": 1})).train()
    assert flat(seen(plain)) == list(range(COUNT))


def test_the_files_of_a_data_set_come_in_another_order_each_epoch(stream: Build) -> None:
    loader = stream(shuffle_buffer=1).train()
    starts = set()
    for epoch in range(6):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        starts.add(tuple(batch["input_ids"][0].tolist()))
    assert len(starts) > 1


def test_the_order_is_that_of_the_seed_and_the_epoch(stream: Build) -> None:
    def text(loader: Any) -> list[list[int]]:
        return [row for batch in loader for row in batch["input_ids"].tolist()]

    one, other = stream().train(), stream().train()
    first_epoch, second_epoch = text(one), text(one)
    other.set_epoch(1)
    assert text(other) == second_epoch != first_epoch
    assert text(stream(seed=1).train()) != first_epoch


# -------------------------------------------------------------------------------------- resume


def content(batch: dict[str, torch.Tensor]) -> list[Any]:
    return [(key, value.tolist()) for key, value in sorted(batch.items())]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 8, 11, 12])
def test_from_any_place_the_rest_is_the_same(cut: int, build: Build) -> None:
    loader = build().train()
    loader.set_epoch(2)
    batches = iter(loader)
    first(batches, cut)
    state = json.loads(json.dumps(loader.state_dict()))
    assert len(json.dumps(state)) < 1000  # a place, not the buffer
    rest = [content(batch) for batch in batches]
    following = [content(batch) for batch in loader]
    again = build().train()
    again.load_state_dict(state)
    resumed = [content(batch) for batch in again]
    # At the end of an epoch nothing is left of it: the next one begins.
    assert resumed == (rest or following)
    if rest:
        assert [content(batch) for batch in again] == following


def test_a_resumed_stream_can_be_resumed_again(build: Build) -> None:
    whole = [content(batch) for batch in build().train()]
    state, pieces = build().train().state_dict(), []
    for _ in whole:
        loader = build().train()
        loader.load_state_dict(state)
        pieces.append(content(next(iter(loader))))
        state = json.loads(json.dumps(loader.state_dict()))
    assert pieces == whole


def test_the_trainer_resumes_a_stream_exactly(stream: Build) -> None:
    def windows(count: int, *, state: Any = None, epoch: int = 0, batch: int = 0) -> list[Any]:
        feed = training_stream(stream().train(), seed=0)
        assert feed.inexact_because == ""
        assert feed.steps_per_epoch is None
        if state is not None:
            feed.load_state_dict(state)
        taken = []
        for window in feed.windows(epoch=epoch, batch=batch):
            taken.append((window, window.last, json.loads(json.dumps(feed.state_dict()))))
            if len(taken) == count:
                return taken
        raise AssertionError("the windows end")

    def contents(taken: list[Any]) -> list[Any]:
        return [(w.epoch, w.batch, content(w.micro_batches[0]), last) for w, last, _ in taken]

    whole = windows(30)
    assert [last for _, last, _ in whole[:12]] == [False] * 11 + [True]
    for cut in (1, 5, 11, 12, 13, 24):
        window, _, state = whole[cut - 1]
        resumed = windows(30 - cut, state=state, epoch=window.epoch, batch=window.batch)
        assert contents(resumed) == contents(whole[cut:]), cut


# ------------------------------------------------------------------------------- what is needed


def test_labels_come_from_the_settings_or_a_class_label(
    make_data: MakeData, tmp_path: Path
) -> None:
    import datasets

    plain = SETTINGS | {"labels": ()}
    with pytest.raises(DataError, match="are not known before it is read") as caught:
        make_data(**(plain | write_rows("jsonl", tmp_path)))
    assert "data_settings.labels" in caught.value.hint[0]
    with pytest.raises(DataError, match="are not known before it is read"):
        make_data(**(plain | write_rows("parquet", tmp_path)))
    path = tmp_path / "declared.parquet"
    table = datasets.Dataset.from_list(ROWS).class_encode_column("label")
    table.to_parquet(path)
    assert make_data(**(plain | {"train": str(path)})).label_names == ("neg", "pos")


def test_the_other_splits_are_read_whole(stream: Build) -> None:
    data = stream()
    assert data.describe() == "streamed train, 5 validation; labels neg, pos"
    assert [row for batch in data.validation() for row in batch["row"].tolist()] == [*range(5)]


def test_pairs_can_be_streamed(make_data: MakeData, jsonl: Callable[..., Path]) -> None:
    rows = [{"premise": "it rains", "hypothesis": "wet", "label": "pos"}] * 5
    data = make_data(**(SETTINGS | {"train": str(jsonl("pairs.jsonl", *rows))}))
    assert data.pairs
    batch = next(iter(data.train()))
    assert batch["token_type_ids"].max() == 1


def test_a_broken_row_stops_the_stream_with_its_number(
    make_data: MakeData, jsonl: Callable[..., Path]
) -> None:
    path = jsonl("broken.jsonl", *ROWS[:30], {"text": 7, "label": "pos"})
    batches = iter(make_data(**(SETTINGS | {"train": str(path)})).train())
    with pytest.raises(DataError, match=r"broken\.jsonl:31: the text is 7"):
        list(batches)
    path = jsonl("unknown.jsonl", *ROWS[:30], {"text": "so", "label": "posh"})
    batches = iter(make_data(**(SETTINGS | {"train": str(path)})).train())
    with pytest.raises(DataError, match=r"unknown\.jsonl:31: unknown label 'posh'; did you mean p"):
        list(batches)


@pytest.mark.parametrize("unlabelled", ["error", "drop"])
def test_unlabelled_rows_of_a_stream(unlabelled: str, make_data: MakeData, tmp_path: Path) -> None:
    import datasets

    rows = [
        {**row, "label": None if number == 20 else row["label"]} for number, row in enumerate(ROWS)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    named = {"train": str(tmp_path / "a.parquet"), "unlabelled": unlabelled}
    batches = make_data(**(SETTINGS | named)).train()
    if unlabelled == "drop":
        assert sorted(flat(seen(batches))) == [row for row in range(COUNT) if row != 20]
    else:
        with pytest.raises(DataError, match=r"a\.parquet:21: no label"):
            list(batches)


def test_a_stream_without_a_row_is_refused(make_data: MakeData, write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"empty\.jsonl holds no row of data"):
        make_data(**(SETTINGS | {"train": str(write("empty.jsonl", ""))}))


def test_what_cannot_be_streamed_is_refused(stream: Build, make_data: MakeData) -> None:
    with pytest.raises(DataError, match="made in memory and cannot be streamed"):
        make_data(streaming=True, train="builtin:negation")
    with pytest.raises(DataError, match=r"num_workers is 2, .* main process"):
        stream(num_workers=2).train()
    with pytest.raises(DataError, match=r"train\[:2\], cannot be streamed") as caught:
        stream(train="train[:2]")
    assert caught.value.hint == ("splits: train, validation",)
    with pytest.raises(DataError, match="has no split 'trian'; did you mean train") as caught:
        stream(train="trian")
    assert caught.value.hint == ("splits: train, validation",)
