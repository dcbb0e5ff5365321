"""The data module: tasks together, their parts, their loaders, their assets, and answers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.data import MultitaskData
from ptrain_multitask_bert.settings_data import HeadSettings, MultitaskSettings, TaskSettings

from plugin_trainer.errors import DataError

MARKED = "<e1>maria</e1> works for <e2>acme</e2>"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with data of three tasks: 12 labelled texts, 6 sentences, 10 marked texts."""
    tones = [f"{'a good ' * (number + 1)}film\t{number % 2}\n" for number in range(12)]
    (tmp_path / "tone.tsv").write_text("".join(tones), encoding="utf-8")
    sentence = "maria\tB-person\nsang\tO\nin\tO\noslo\tB-place\n\n"
    (tmp_path / "names.conll").write_text(sentence * 6, encoding="utf-8")
    pairs = [f"{number} {MARKED}\t{('none', 'works_for')[number % 2]}\n" for number in range(10)]
    (tmp_path / "pairs.tsv").write_text("".join(pairs), encoding="utf-8")
    return tmp_path


def three(folder: Path, **changes: Mapping[str, Any]) -> dict[str, TaskSettings]:
    """The settings of the three tasks, changed by task as asked."""
    tasks: dict[str, dict[str, Any]] = {
        "tone": {"train": str(folder / "tone.tsv")},
        "names": {"kind": "entities", "train": str(folder / "names.conll")},
        "pairs": {"kind": "relations", "train": str(folder / "pairs.tsv")},
    }
    return {name: TaskSettings(**{**one, **changes.get(name, {})}) for name, one in tasks.items()}


def module(tasks: Mapping[str, TaskSettings], **changes: Any) -> MultitaskData:
    settings = {"vocabulary_size": 400, "max_tokens": 32, "batch_size": 4, **changes}
    return MultitaskData(MultitaskSettings(tasks=tasks, **settings))


def test_a_loader_for_every_task_and_batches_as_the_model_takes_them(files: Path) -> None:
    data = module(three(files, tone={"batch_size": 3}))
    loaders = data.train()
    assert [(name, len(loader)) for name, loader in loaders.items()] == [
        ("tone", 4),
        ("names", 2),
        ("pairs", 3),
    ]
    tone, names, pairs = (next(iter(loader)) for loader in loaders.values())
    assert tone["input_ids"].shape == tone["attention_mask"].shape and len(tone["input_ids"]) == 3
    assert tone["labels_label"].dtype == torch.int64
    assert names["labels_entities"].shape == names["input_ids"].shape
    assert ((names["labels_entities"] >= 0) <= names["attention_mask"].bool()).all()
    assert pairs["mark_positions"].shape == (4, 2)
    assert set(pairs) == {"input_ids", "attention_mask", "mark_positions", "labels_relation", "row"}


def test_batches_can_be_made_in_worker_processes(files: Path) -> None:
    data = module(three(files), num_workers=1)
    for loader in data.train().values():
        pickle.dumps(loader.dataset), pickle.dumps(loader.collate_fn)
    (batch,) = list(module(three(files), num_workers=1, batch_size=99).train()["names"])
    assert len(batch["input_ids"]) == 6


def test_the_last_rows_of_the_training_file_validate(files: Path) -> None:
    data = module(three(files, pairs={"validation": "last 4"}), batch_size=99)
    validation = data.validation()
    assert validation is not None and set(validation) == {"pairs"}
    (train,), (held,) = data.train()["pairs"], validation["pairs"]
    assert len(train["input_ids"]) == 6
    first = [data.tokenizer.decode(row) for row in held["input_ids"]]
    assert [text.split()[1][0] for text in first] == ["6", "7", "8", "9"]


def test_a_share_of_the_training_rows_validates_the_same_ones_every_time(files: Path) -> None:
    def held(seed: int) -> list[list[int]]:
        data = module(three(files, tone={"validation": "25 %"}), seed=seed, batch_size=99)
        validation = data.validation()
        assert validation is not None
        (train,), (held,) = data.train()["tone"], validation["tone"]
        assert (len(train["input_ids"]), len(held["input_ids"])) == (9, 3)
        return [row[row > 0].tolist() for row in held["input_ids"]]

    assert held(0) == held(0)
    assert held(0) != held(1)


def test_a_label_that_only_held_out_rows_have_is_known(files: Path) -> None:
    with (files / "tone.tsv").open("a", encoding="utf-8") as file:
        file.write("rare\t2\n")
    data = module(three(files, tone={"validation": "last 1"}))
    assert data.heads()[0].labels == ("0", "1", "2")


@pytest.mark.parametrize("wanted", ["last 0", "last 10", "0 %", "100 %"])
def test_a_part_that_leaves_nothing_is_refused(files: Path, wanted: str) -> None:
    with pytest.raises(DataError, match=r"data_settings.tasks.pairs.validation = .* holds \d+ of"):
        module(three(files, pairs={"validation": wanted}))


def test_batches_of_one_length_waste_nothing_and_hold_every_row(files: Path) -> None:
    data = module(three(files), bucketed=True)
    batches = list(data.train()["tone"])
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4]
    rows = torch.cat([batch["row"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(12))
    spread = [batch["attention_mask"].sum(-1) for batch in batches]
    # The texts of a batch follow each other in length: two pieces from one to the next.
    assert all(int(lengths.max() - lengths.min()) == 6 for lengths in spread)


def test_everything_is_said_of_the_data_in_one_line(files: Path) -> None:
    data = module(three(files, pairs={"validation": "last 4"}, names={"max_tokens": 5}))
    told = data.describe()
    assert told.startswith("tone 12, names 6, pairs 6/4; names: ") and "words cut off" in told


def test_heads_metrics_and_sizes_for_the_model(files: Path) -> None:
    data = module(three(files, tone={"max_tokens": 40}))
    assert [head.address for head in data.heads()] == [
        "tone/label",
        "names/entities",
        "pairs/relation",
    ]
    assert data.max_tokens == 40
    assert data.vocabulary_size == len(data.tokenizer) and data.pad_id == 0
    metrics = data.metrics()
    assert set(metrics["names"]["entities"]) == {"accuracy", "precision", "recall", "f1"}
    assert "accuracy" in metrics["tone"]["label"] and "f1" in metrics["pairs"]["relation"]


def test_marks_are_tokens_only_where_there_is_a_relation(files: Path) -> None:
    tasks = three(files)
    assert "<e1>" in module(tasks).tokenizer.get_vocab()
    del tasks["pairs"]
    assert "<e1>" not in module(tasks).tokenizer.get_vocab()


def test_a_run_outlives_its_files_and_its_encoder(
    files: Path, tmp_path: Path, make_encoder: Callable[[str], Path]
) -> None:
    encoder = make_encoder("bert")
    data = module(three(files), tokenizer=str(encoder))
    assets = tmp_path / "assets"
    assets.mkdir()
    data.save_assets(assets)
    for path in (*files.glob("*.tsv"), *files.glob("*.conll"), *encoder.glob("*")):
        path.unlink()
    again = MultitaskData.from_assets(data.settings, assets)
    assert again.heads() == data.heads()
    lines = [MARKED, "a good film", '{"task": "names", "tokens": ["maria", "sang"]}']
    for one, other in zip(data.predict(lines), again.predict(lines), strict=True):
        assert one["task"] == other["task"]
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_a_run_is_evaluated_on_files_of_its_own_labels(files: Path, tmp_path: Path) -> None:
    module(three(files)).save_assets(tmp_path)
    (files / "dev.tsv").write_text("a good film\t1\nanother\t2\n", encoding="utf-8")
    settings = MultitaskSettings(tasks=three(files, tone={"validation": str(files / "dev.tsv")}))
    with pytest.raises(DataError, match=r"dev\.tsv:2: label 2 is outside of the range 0 to 1"):
        MultitaskData.from_assets(settings, tmp_path).validation()


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({}, "data_settings.tasks has no task"),
        ({"tone": TaskSettings()}, "the task 'tone' has no data: data_settings.tasks.tone.train"),
        (
            {"tone": TaskSettings(train="a.tsv", subset="x")},
            "data_settings.tasks.tone.subset is set, and data_settings.tasks.tone.dataset is not",
        ),
        (
            {"Tone": TaskSettings(train="a.tsv"), "tone ": TaskSettings(train="b.tsv")},
            "data_settings.tasks has 'Tone' and 'tone '",
        ),
        ({"text": TaskSettings(train="a.tsv")}, "a task cannot be called 'text'"),
        ({"tone": TaskSettings(train="there/is/none.tsv")}, "none.tsv is not there"),
        ({"tone": TaskSettings(train="builtin:tome")}, "there is no generated task 'tome'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(tasks: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        module(tasks)
    assert said in str(caught.value)


def test_what_is_wrong_with_several_tasks_is_said_together(files: Path) -> None:
    (files / "names.conll").write_text("maria\tI-person\n", encoding="utf-8")
    (files / "pairs.tsv").write_text("no marks\ta\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        module(three(files, names={"scheme": "bio"}))
    assert caught.value.message == "2 tasks cannot be used"
    told = str(caught.value)
    assert "names.conll:1: I-person after the beginning" in told and "pairs.tsv:1: no <e1>" in told


def test_what_is_wrong_with_later_parts_is_said_together_too(files: Path) -> None:
    for name in ("dev.conll", "dev.tsv"):
        (files / name).write_text("maria\tI-person\n", encoding="utf-8")
    broken = {"validation": str(files / "dev.conll"), "scheme": "bio"}
    with pytest.raises(DataError) as caught:
        module(three(files, names=broken, pairs={"test": str(files / "dev.tsv")}))
    assert caught.value.message == "2 tasks cannot be used"


def test_an_empty_file_is_a_task_with_no_data(files: Path) -> None:
    (files / "tone.tsv").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"data_settings.tasks.tone.train: .*tone\.tsv is empty"):
        module(three(files))


# -------------------------------------------------------------------------------------- answers


def answered(data: MultitaskData, lines: list[str]) -> list[dict[str, Any]]:
    """The answers of a model that prefers the last label of every head."""
    found = []
    for batch in data.predict(lines):
        logits = {}
        for head in data.tasks[batch["task"]].heads:
            shape = batch["input_ids"].shape if head.kind == "tokens" else (len(batch["rows"]),)
            logits[head.name] = torch.arange(float(head.width)).expand(*shape, head.width)
            if head.kind == "regression":
                logits[head.name] = torch.full(shape, 2.5)
        found.extend(data.decode({"logits": logits}, batch))
    json.dumps(found)
    return found


def test_every_task_that_can_answer_a_line_does_in_the_order_of_the_lines(files: Path) -> None:
    data = module(three(files), evaluation_batch_size=2)
    lines = ["a film", f"so {MARKED}", '{"task": "tone", "text": "b"}', "maria sang", "{x"]
    found = answered(data, lines)
    assert [set(one) - {"text"} for one in found] == [
        {"tone", "names"},
        {"tone", "names", "pairs"},
        {"tone"},
        {"tone", "names"},
        {"tone", "names"},
    ]
    assert [one["text"] for one in found] == ["a film", f"so {MARKED}", "b", "maria sang", "{x"]
    assert found[0]["tone"]["label"]["label"] == "1"
    assert found[1]["pairs"]["relation"]["label"] == "works_for"
    names = found[1]["names"]["entities"]
    assert [one["text"] for one in names] == ["so <e1>maria</e1> works for <e2>acme"]


def test_lines_of_words_and_lists_of_tasks(files: Path) -> None:
    data = module(three(files))
    lines = ['{"tokens": ["maria", "sang"], "task": ["names", "tone"], "other": 1}']
    (one,) = answered(data, lines)
    assert one["text"] == "maria sang" and set(one) == {"text", "names", "tone"}
    assert one["names"]["entities"][0]["end"] == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 1}', "line 1: a JSON object without a text; its keys: text"),
        ('{"text": "a", "task": "tune"}', "line 1: there is no task 'tune'; did you mean tone?"),
        ('{"text": "a", }', "line 1: not valid JSON"),
        ('{"text": "a", "task": "pairs"}', "line 1: the task 'pairs' cannot answer it: no spans"),
        ("<e1>a</e1> b", "line 1: no <e2> and no </e2>"),
        ('{"text": "a", "text_pair": "b"}', "line 1: no task can answer it"),
    ],
)
def test_lines_that_nothing_can_answer_are_named(files: Path, line: str, said: str) -> None:
    data = module(three(files))
    with pytest.raises(DataError) as caught:
        answered(data, [line])
    assert said in str(caught.value)


def test_broken_lines_come_together_with_their_numbers(files: Path) -> None:
    class Lines(list[str]):
        first_line = 100

    with pytest.raises(DataError) as caught:
        answered(module(three(files)), Lines(["ok", '{"text": 1}', '{"task": "x", "text": "a"}']))
    assert caught.value.message == "the input: 2 rows cannot be used"
    assert caught.value.hint[0].startswith("line 101: ")
    assert caught.value.hint[1].startswith("line 102: ")


def test_a_line_with_a_tab_is_for_tasks_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("premise\thypothesis\tlabel\na\tb\t0\nc\td\t1\n", "utf-8")
    (tmp_path / "b.csv").write_text("text,stars\nx,1\ny,2\n", "utf-8")
    stars = {"stars": HeadSettings(kind="regression", column="stars")}
    data = module(
        {
            "same": TaskSettings(train=str(tmp_path / "a.tsv")),
            "film": TaskSettings(train=str(tmp_path / "b.csv"), heads=stars),
        }
    )
    one, other = answered(data, ["a\tb", "x"])
    assert set(one) == {"text", "text_pair", "same"} and one["text_pair"] == "b"
    assert other["film"]["stars"] == {"value": 2.5} and "same" not in other


def test_no_lines_have_no_answers(files: Path) -> None:
    assert answered(module(three(files)), []) == []


def test_generated_tasks_have_parts_of_their_own() -> None:
    data = module(
        {
            name: TaskSettings(
                kind=kind, train=f"builtin:{name}", examples=30, validation_examples=10
            )
            for name, kind in (
                ("sentiment", "classification"),
                ("entities", "entities"),
                ("relations", "relations"),
            )
        },
        max_tokens=64,
    )
    validation = data.validation()
    assert validation is not None and set(validation) == {"sentiment", "entities", "relations"}
    assert data.describe() == "sentiment 30/10, entities 30/10, relations 30/10"
    assert data.test() is None
