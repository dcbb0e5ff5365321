"""The table of sources in docs/dactbert.md: every row of it is run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import TextClassificationSettings
from pydantic import TypeAdapter

datasets = pytest.importorskip("datasets")

PAGE = Path(__file__).parents[3] / "docs/dactbert.md"

ROWS = [
    (match[1], "\n".join(re.findall(r"`([^`]+)`", match[2])))
    for match in re.finditer(r"^\| ([^|]+) \| (`.+`) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
]


@pytest.fixture
def _sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the table names, in the current folder, where a Hub id is a folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    numbers = [0, 1] * 10
    texts = [f"film number {number}" for number in range(20)]
    names = datasets.ClassLabel(names=["neg", "pos"])
    single = datasets.Dataset.from_dict({"sentence": texts, "label": numbers})
    named = single.cast_column("label", names)
    lines = "".join(f"{text}\t{label}\n" for text, label in zip(texts, numbers, strict=True))
    for name in ("train.tsv", "dev.tsv"):
        Path(name).write_text(lines)
    single.select(range(20)).to_json("train.jsonl")
    for name in ("train", "dev"):
        named.to_parquet(f"{name}.parquet")
    for folder in ("films", "stanfordnlp/sst2"):
        for split in ("train", "validation", "test"):
            named.to_parquet(f"{folder}/{split}.parquet")
    datasets.DatasetDict(train=named, validation=named).save_to_disk("saved")
    Path("answers.csv").write_text(
        "asked,answered,good\n" + "".join(f"{text},so,{text[-1:] > '4'}\n" for text in texts)
    )
    pairs = {"premise": texts, "hypothesis": texts, "label": [0, 1, 2, -1] * 5}
    snli = datasets.Dataset.from_dict(pairs)
    snli.to_parquet("stanfordnlp/snli/train.parquet")
    mnli = snli.filter(lambda row: row["label"] >= 0)
    mnli.to_parquet("glue/mnli/train.parquet")
    mnli.to_parquet("glue/mnli/validation_matched.parquet")
    Path("glue/README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files: mnli/train.parquet\n"
        "- config_name: mnli\n  data_files:\n"
        "  - split: train\n    path: mnli/train.parquet\n"
        "  - split: validation_matched\n    path: mnli/validation_matched.parquet\n---\n"
    )


def test_the_table_is_there() -> None:
    assert len(ROWS) == 12


@pytest.mark.usefixtures("_sources")
@pytest.mark.parametrize(("what", "settings"), ROWS, ids=[what for what, _ in ROWS])
def test_a_source_of_the_table_gives_batches(what: str, settings: str) -> None:
    values: dict[str, Any] = tomllib.loads(settings)
    data = TextClassification(TypeAdapter(TextClassificationSettings).validate_python(values))
    batch = next(iter(data.train()))
    assert "labels" in batch
    assert ("pairs" in what or "subset" in what or "no label" in what) == data.pairs
    if "validation" in values or ("dataset" in values and "label" not in what):
        assert data.validation() is not None
