"""`ptrain predict` reads a table as training does, and each answer says which line it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugin_trainer.cli.main import main

SMALL = {
    "length": "2 steps",
    "model_settings.hidden_size": 8,
    "model_settings.num_blocks": 1,
    "model_settings.initial_depth": 1,
    "model_settings.num_heads": 1,
    "callbacks": '["-progress_bar", "-tensorboard", "-dactbert/exit_statistics"]',
}
TRAIN = 'text,label\n"good, fine film",pos\nso bad,neg\n"great\nfilm",pos\npoor one,neg\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was trained on a CSV file."""
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text(TRAIN)
    sets = {**SMALL, "data_settings.train": "train.csv", "data_settings.validation": "train.csv"}
    arguments = [f"--set={key}={value}" for key, value in sets.items()]
    assert main(["run", "--plugin", "dactbert", *arguments, "--out", "run"]) == 0
    return "run"


def answers(capsys: Any, run: str, name: str, text: str) -> list[dict[str, Any]]:
    Path(name).write_text(text)
    capsys.readouterr()
    assert main(["predict", run, name]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("in.csv", TRAIN, [2, 3, 4, 6]),
        ("in.csv", "id,text\n1,hello\n2,you\n", [2, 3]),
        ("in.csv", "hello\nyou\n", [1, 2]),
        ("in.tsv", "text\tlabel\nhello\tpos\n", [2]),
        ("in.jsonl", '{"label": 5, "text": "hello"}\n\n{"text": "you"}\n', [1, 3]),
        ("in.txt", "text,label\nhello,pos\n", [None, None]),
    ],
)
def test_a_table_is_answered_row_by_row(
    run: str, capsys: Any, name: str, text: str, lines: list[int | None]
) -> None:
    found = answers(capsys, run, name, text)
    assert [answer.get("line") for answer in found] == lines
    assert all(answer["label"] in ("pos", "neg") for answer in found)


def test_a_row_is_answered_as_its_text_alone(run: str, capsys: Any) -> None:
    (_, bad, *_) = answers(capsys, run, "in.csv", TRAIN)
    (alone,) = answers(capsys, run, "in.txt", "so bad\n")
    assert bad["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)


@pytest.mark.parametrize("name", ["in.csv", "in.tsv"])
def test_a_row_without_a_text_is_named(run: str, capsys: Any, name: str) -> None:
    comma = "," if name == "in.csv" else "\t"
    Path(name).write_text(f"text{comma}id\nhello{comma}1\n{comma}2\n")
    assert main(["predict", run, name]) == 2
    assert f"{name}:3: no text" in capsys.readouterr().err


def test_an_empty_cell_is_not_trained_on(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "train.csv").write_text(TRAIN + ",pos\n")
    file = f"data_settings.train={tmp_path}/train.csv"
    assert main(["run", "--plugin", "dactbert", "--dry-run", "--set", file]) == 2
    assert "train.csv:7: no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "text,label\ra,pos\rb,neg\r", "its lines end in a carriage return alone"),
        ("train.jsonl", '{"text": "\\ud800", "label": 1}\n', ":1: half of a character"),
        ("train.jsonl", f'{{"text": "a", "label": {"9" * 5000}}}\n', ":1: not valid JSON"),
        ("train.csv", "text,label,text\na,pos,b\nc,neg,d\n", "2 columns are called 'text'"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: Any, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, newline="")
    sets = [f"data_settings.train={tmp_path}/{name}", "data_settings.text=text"]
    arguments = [part for one in sets for part in ("--set", one)]
    assert main(["run", "--plugin", "dactbert", "--dry-run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "internal error" not in error and len(error) < 1000


def test_a_long_field_of_a_csv_file_is_read(run: str, capsys: Any) -> None:
    assert len(answers(capsys, run, "in.csv", f"text,label\n{'word ' * 40_000},pos\n")) == 1


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "5", "null", "{}", "\x00", '{"model": {}}'])
def test_a_tokenizer_that_is_none_is_one_message(
    run: str, capsys: Any, name: str, content: str
) -> None:
    """With a hash that fits: whoever changed the file may have changed run.json too."""
    path = Path(run, "assets", name)
    path.write_text(content)
    about = json.loads(Path(run, "run.json").read_text())
    Path(run, "run.json").write_text(json.dumps({**about, "assets": {}}))
    capsys.readouterr()
    code = main(["evaluate", run])
    error = capsys.readouterr().err
    assert code in (0, 2) and "internal error" not in error and "Traceback" not in error
    assert code == 0 or "error: " in error
