"""The runtime answers without torch, each text as it would alone, and as soon as it comes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ptrain_dactbert.runtime import load

from plugin_trainer import load_run
from plugin_trainer.cli.main import main

# Runs the module in its arguments as `python -m` does, where nothing that trains can be imported.
WITHOUT_TORCH = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "plugin_trainer", "onnx"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Refused())
module = sys.argv.pop(1)
run = runpy.run_path if module.endswith(".py") else runpy.run_module
run(module, run_name="__main__")
"""


def decided(answers: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """What must not depend on the batch."""
    return [(one["label"], one["exit_block"]) for one in answers]


@pytest.mark.parametrize("level", ["1%", None])
def test_a_text_is_answered_alone_as_among_others_in_any_order(
    exported: Path, texts: list[str], level: str | None
) -> None:
    classifier = load(exported, level=level)
    together = classifier.predict(texts)
    assert len(together) > 256  # more than a window
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    shuffled = classifier.predict([texts[row] for row in order])
    assert decided(shuffled) == [decided(together)[row] for row in order]
    for row in order[:40]:
        (alone,) = classifier.predict([texts[row]])
        assert decided([alone]) == decided([together[row]])
        assert alone["probabilities"] == pytest.approx(together[row]["probabilities"], abs=1e-5)
    assert classifier.predict([]) == []


def test_a_level_is_the_exports_own_a_promise_a_number_or_none(exported: Path) -> None:
    about = json.loads((exported / "exits.json").read_text())
    one, two = (item["level"] for item in about["certified"])
    for level, expected in {"default": one, "1%": one, "2%": two, "0.5": 0.5, 3: 3.0}.items():
        assert load(exported, level=level).level == expected
    assert load(exported, level=None).level is load(exported, level="off").level is None
    for level in ("3%", "lossless", "nan"):
        with pytest.raises(ValueError, match=f"{level} is no choice, or is not certified; use off"):
            load(exported, level=level)


def test_two_threads_answer_as_one(exported: Path, texts: list[str]) -> None:
    one, two = (load(exported, threads=threads).predict(texts[:64]) for threads in (1, 2))
    assert decided(one) == decided(two)


@pytest.mark.process
@pytest.mark.parametrize("module", ["ptrain_dactbert.runtime", "runtime.py"])
def test_a_pipe_is_answered_line_by_line_where_torch_cannot_be_imported(
    exported: Path, texts: list[str], module: str
) -> None:
    """In a Python of its own: by the package, and by the copy that the folder has."""
    module = str(exported / module) if module.endswith(".py") else module
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, module, str(exported), "--exit", "2%"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(texts[0] + "\n")
        process.stdin.flush()
        answers = [process.stdout.readline()]  # before the pipe is closed
        process.stdin.write("\r\n".join(texts[1:20]))
        process.stdin.close()
        answers += process.stdout
    assert process.returncode == 0
    expected = load(exported, level="2%").predict(texts[:20])
    found = [json.loads(answer) for answer in answers]
    assert decided(found) == decided(expected)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of pairs after one step, and its export; it has too few rows for any promise."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        f"it rains for {day} days\tit is {'wet' if day % 2 else 'dry'}\t{day % 2}\n"
        for day in range(40)
    ]
    data = folder / "pairs.tsv"
    data.write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    settings = ("hidden_size=16", "num_blocks=2", "num_heads=2", "initializer_range=0.5")
    command = ["run", "dactbert/exits", "--out", str(folder / "run"), "--set=length=1 steps"]
    command += ["--set=schedule.warmup=0 steps"]
    command += [f"--set=model_settings.{setting}" for setting in settings]
    command += [f"--set=data_settings.{split}={data}" for split in ("train", "validation")]
    assert main([*command, '--set=callbacks=["-progress_bar", "-tensorboard"]']) == 0
    export = ["models", "export", str(folder / "run"), str(folder / "onnx"), "--format", "onnx"]
    assert main(export) == 0
    return folder / "run", folder / "onnx"


def test_pairs_are_answered_as_by_the_run(pairs: tuple[Path, Path]) -> None:
    run, onnx = pairs
    lines = ["it rains\tit is wet", "it rains for 3 days " * 30 + "\tit is dry", "\t"]
    classifier = load(onnx)
    assert classifier.level is None
    answers = classifier.predict(lines)
    for answer, expected in zip(answers, load_run(run).predict(lines), strict=True):
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert answers[0]["probabilities"] != pytest.approx(answers[1]["probabilities"], abs=1e-5)
    with pytest.raises(ValueError, match="text 2 is no pair; write it as first<TAB>second"):
        classifier.predict(["a\tb", "a"])
    with pytest.raises(ValueError, match="1% is no choice, or is not certified; use off"):
        load(onnx, level="1%")


def test_what_cannot_be_used_is_one_line(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no exported classifier: exits"):
        load(tmp_path)
    about = json.loads((exported / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(ValueError, match="has format 2, and this reads 1"):
        load(tmp_path)


def test_without_onnxruntime_the_extra_is_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "ptrain-dactbert\[onnx\]"'):
        load(exported)
