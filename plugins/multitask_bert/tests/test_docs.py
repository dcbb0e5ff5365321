"""What the README shows is run: its run file, its settings, and the reload without ptrain."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from ptrain_multitask_bert.generated import rows
from ptrain_multitask_bert.settings import MultitaskSettings
from pydantic import TypeAdapter

from plugin_trainer.cli.main import main

PLUGIN = Path(__file__).parents[1]
README = (PLUGIN / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((PLUGIN / "examples").glob("*.toml"))


def shown(name: str) -> str:
    """The block of code behind the comment <!-- name -->."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_run_file_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text(shown("run file"))
    assert main(["config", "check", str(file)]) == 0, capsys.readouterr()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_right(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(file)]) == 0, capsys.readouterr()


def test_the_settings_of_several_heads_are_right() -> None:
    table = tomllib.loads(shown("settings"))["data_settings"]
    settings = TypeAdapter(MultitaskSettings).validate_python(table)
    heads = settings.tasks["mail"].heads
    assert heads["urgent"].class_weights == {"yes": 5.0}
    assert heads["topics"].threshold == 0.3


def test_a_run_is_read_without_ptrain_as_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["model_settings.hidden_size=16", "model_settings.num_blocks=1", "length=2 steps"]
    sets = [part for setting in small for part in ("--set", setting)]
    assert main(["run", "--plugin", "multitask_bert", *sets, "--out", "RUN"]) == 0
    capsys.readouterr()
    names: dict[str, object] = {}
    exec(compile(shown("reload"), "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() in {"negative", "positive"}
    tags = names["tags"]
    assert tags.shape[:2] == names["states"].shape[:2]  # type: ignore[attr-defined]


def test_the_generated_texts_are_as_shown() -> None:
    """Every word of the examples is one that the tasks use."""
    known = {
        word
        for task in ("sentiment", "entities", "relations")
        for record in rows(task, split="train", size=2000, seed=0)
        for word in (record.get("tokens") or record["text"].split())
    }
    for line in re.findall(r"^\| (?:sentiment|entities|relations) \| ([^|]+) \|", README, re.M):
        assert set(line.replace("`", "").split()) <= known, line
