"""Whole runs from the command line: a streamed data set of pairs, then predictions."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugin_trainer.cli.main import main

datasets = pytest.importorskip("datasets")


@pytest.fixture
def ptrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call `ptrain` in an empty folder that has a small data set of pairs, `weather`.

    Returns the exit code, and what was written to standard output and error.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "premise": [f"it rains for {day} days" for day in range(20)],
        "hypothesis": ["it is wet", "it is dry"] * 10,
        "label": [1, 0] * 10,
    }
    table = datasets.Dataset.from_dict(rows)
    table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation"):
        table.to_parquet(f"weather/{name}.parquet")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(arguments), *capsys.readouterr()

    return call


SETTINGS = {
    "model_settings.hidden_size": "16",
    "model_settings.num_blocks": "2",
    "model_settings.num_heads": "2",
    "model_settings.initial_depth": "1.5",
    "data_settings.dataset": "weather",
    "data_settings.batch_size": "4",
    "length": "4 steps",
    "evaluate": "2 steps",
    "save": "2 steps",
}


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_run_on_pairs_of_a_data_set_predicts_pairs(streaming: str, ptrain: Any) -> None:
    settings = {**SETTINGS, "data_settings.streaming": streaming}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    code, _, error = ptrain("run", "--plugin", "dactbert", *sets, "--out", "run")
    assert code == 0, error
    assert json.loads(Path("run/run.json").read_text())["inexact_because"] == ""
    Path("weather").rename("gone")
    Path("input.txt").write_text("it rains\tit is wet\nit rains\tit is dry\n")
    code, output, error = ptrain("predict", "run", "input.txt")
    assert code == 0, error
    answers = [json.loads(line) for line in output.splitlines()]
    assert [set(answer["probabilities"]) for answer in answers] == [{"no", "yes"}] * 2
    Path("input.txt").write_text("it rains\tit is wet\nit rains\n")
    code, _, error = ptrain("predict", "run", "input.txt")
    assert code == 2
    assert "line 2: no tab in 'it rains'" in error


def test_a_disk_that_refuses_the_tokenizer_is_said(ptrain: Any) -> None:
    generated = {key: value for key, value in SETTINGS.items() if key != "data_settings.dataset"}
    sets = [part for key, value in generated.items() for part in ("--set", f"{key}={value}")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, err = ptrain("run", "--plugin", "dactbert", *sets, "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, err.splitlines()[-2:]) == (
        2,
        [
            "error: the run folder run cannot be written: File too large",
            "  make room there, or choose another with --out",
        ],
    )
