"""Whole runs of three tasks from the command line: trained, killed, resumed, and asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel as TransformersModel
from transformers import AutoTokenizer

import plugin_trainer
from plugin_trainer.cli.main import main
from tests import forkserver

Ptrain = Callable[..., tuple[int, str, str]]

SMALL = {
    "model_settings.hidden_size": "16",
    "model_settings.num_blocks": "2",
    "model_settings.num_heads": "2",
    "data_settings.batch_size": "8",
    **{
        f"data_settings.tasks.{task}.{size}": count
        for task, count in (("sentiment", "48"), ("entities", "32"), ("relations", "40"))
        for size in ("examples",)
    },
    **{
        f"data_settings.tasks.{task}.validation_examples": "24"
        for task in ("sentiment", "entities", "relations")
    },
    "length": "2 epochs",
    "evaluate": "1 epoch",
    "save": "5 steps",
}
STEPS_PER_EPOCH = 6 + 4 + 5


def with_settings(settings: Mapping[str, str]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def ptrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ptrain:
    """Call `ptrain` in an empty folder: the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(arguments), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the recipe's three tasks."""
    folder = tmp_path_factory.mktemp("small") / "run"
    code = main(["run", "--plugin", "multitask_bert", *with_settings(SMALL), "--out", str(folder)])
    assert code == 0
    return folder


# ------------------------------------------------------------------------------------- the recipe


@pytest.mark.slow
def test_the_recipe_learns_its_three_tasks(ptrain: Ptrain) -> None:
    half = ["--set", "length=2 epochs"]
    code, _, error = ptrain("run", "--plugin", "multitask_bert", "--out", "run", *half)
    assert code == 0, error
    last = metrics_of(Path("run"))[-1]
    # By chance: 0.5, next to nothing, and 0.5 for the most frequent relation.
    assert last["val/sentiment/label/accuracy"] > 0.9
    assert last["val/entities/entities/f1"] > 0.9
    assert last["val/relations/relation/accuracy"] > 0.9
    chosen = ("sentiment/label/accuracy", "entities/entities/f1", "relations/relation/accuracy")
    mean = sum(last[f"val/{name}"] for name in chosen) / 3
    assert last["val/overall"] == pytest.approx(mean)


def test_every_batch_of_every_task_is_one_step(small_run: Path) -> None:
    about = json.loads((small_run / "run.json").read_text())
    assert about["steps_per_epoch"] == STEPS_PER_EPOCH
    assert about["step"] == 2 * STEPS_PER_EPOCH
    assert about["inexact_because"] == ""


def test_losses_and_metrics_are_logged_by_task_and_head(small_run: Path) -> None:
    last = metrics_of(small_run)[-1]
    for task, head, metric in (
        ("sentiment", "label", "accuracy"),
        ("entities", "entities", "f1"),
        ("relations", "relation", "accuracy"),
    ):
        assert 0 <= last[f"val/{task}/{head}/{metric}"] <= 1
        assert last[f"val/{task}/loss"] > 0
        assert last[f"train/{task}/loss"] > 0
        assert last[f"train/{task}/samples"] > 0
    losses = [last[f"val/{task}/loss"] for task in ("sentiment", "entities", "relations")]
    assert last["val/loss"] == pytest.approx(sum(losses) / 3)


def test_tensorboard_has_the_metrics_of_every_head(small_run: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(small_run / "tensorboard")).Reload()
    last = metrics_of(small_run)[-1]
    names = [name for name in last if name.startswith("val/")]
    assert "val/entities/entities/f1" in names
    for name in names:
        assert events.Scalars(name)[-1].value == pytest.approx(last[name], rel=1e-6, abs=1e-7)


# ----------------------------------------------------------------------------------------- resume


def test_a_run_of_three_tasks_that_is_killed_goes_on_to_the_same_bits(
    small_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "plugin_trainer", "run", "--plugin", "multitask_bert"),
        *with_settings(SMALL),
        *("--out", str(folder), "--resume", "auto"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PTRAIN_KILLED": "1"}
    with (tmp_path / "output.txt").open("w") as output:
        process = forkserver.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=tmp_path
        )
        checkpoint = folder / "checkpoints/step-00000010/manifest.json"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    about = json.loads((folder / "run.json").read_text())
    assert about["status"] == "running"  # it was killed, and did not end
    assert main(command[3:]) == 0
    assert 5 <= json.loads((folder / "run.json").read_text())["resumed"][0] < 2 * STEPS_PER_EPOCH
    end = f"checkpoints/step-{2 * STEPS_PER_EPOCH:08}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        once, resumed = load_file(small_run / end / name), load_file(folder / end / name)
        assert once.keys() == resumed.keys()
        for tensor in once:
            assert torch.equal(once[tensor], resumed[tensor]), tensor
    timed = ("time", "samples_per_second", "tokens_per_second")
    for line, again in zip(metrics_of(small_run), metrics_of(folder), strict=True):
        assert line.keys() == again.keys()
        for name, value in line.items():
            if name not in timed and not name.startswith("seconds/"):
                assert again[name] == value, name


# ---------------------------------------------------------------------------------------- predict


def ask(run: Path, lines: Sequence[str]) -> list[Mapping[str, Any]]:
    return list(plugin_trainer.load_run(run).predict(lines))


def test_predict_answers_with_the_trained_weights_after_the_encoders_folder_is_gone(
    make_encoder: Callable[[str], Path], ptrain: Ptrain
) -> None:
    encoder = make_encoder("bert")
    settings = {
        **{key: value for key, value in SMALL.items() if not key.startswith("model_settings")},
        "model_settings.encoder": str(encoder),
        "data_settings.max_tokens": "128",
        "optimizer.learning_rate": "1e-2",
    }
    code, _, error = ptrain(
        "run", "--plugin", "multitask_bert", *with_settings(settings), "--out", "run"
    )
    assert code == 0, error
    line = "the soup is not bad"
    before = ask(Path("run"), [line])
    shutil.rmtree(encoder)
    Path("input.txt").write_text(line + "\n")
    code, output, error = ptrain("predict", "run", "input.txt")
    assert code == 0, error
    assert [json.loads(output)] == before
    trained = plugin_trainer.load_run("run", checkpoint="last").model.state_dict()
    first = plugin_trainer.load_run("run", checkpoint="step-15").model.state_dict()
    assert not torch.equal(
        trained["heads.sentiment/label.linear.weight"],
        first["heads.sentiment/label.linear.weight"],
    )
    Path("input.txt").write_text("<e1> maria </e1> works for <e2> acme </e2>\n")
    code, output, error = ptrain("predict", "run", "input.txt")
    assert code == 0, error
    assert "relations" in json.loads(output)


# ----------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_export_gives_the_same_answers_without_ptrain(which: str, small_run: Path) -> None:
    folder = small_run / "hugging_face" / which
    run = plugin_trainer.load_run(small_run, checkpoint=which)
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    encoder = TransformersModel.from_pretrained(folder / "encoder", add_pooling_layer=False).eval()
    weights = load_file(folder / "heads.safetensors")
    text = "<e1> maria </e1> of acme met jonas of <e2> zenith </e2>"
    batch = tokenizer([text], return_tensors="pt")
    assert batch["input_ids"].tolist() == run.data.tokenizer([text])["input_ids"]
    ids = batch["input_ids"][0].tolist()
    marks = [ids.index(tokenizer.convert_tokens_to_ids(mark)) for mark in ("<e1>", "<e2>")]
    with torch.no_grad():
        states = encoder(**batch).last_hidden_state
        ours = {
            task: run.model(**batch, task=task, mark_positions=torch.tensor([marks]))["logits"]
            for task in ("sentiment", "entities", "relations")
        }
    read = {
        ("sentiment", "label"): states.mean(1),
        ("entities", "entities"): states,
        ("relations", "relation"): states[:, marks].flatten(1),
    }
    for (task, head), inputs in read.items():
        name = f"{task}/{head}"
        answer = inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        torch.testing.assert_close(answer, ours[task][head])
    heads = json.loads((folder / "heads.json").read_text())
    assert heads["pooling"] == "mean"
    assert {(head["task"], head["name"]): tuple(head["labels"]) for head in heads["heads"]} == {
        (head.task, head.name): head.labels for head in run.data.heads()
    }


def test_another_run_may_begin_from_the_exported_encoder(small_run: Path, ptrain: Ptrain) -> None:
    exported = small_run / "hugging_face/best/encoder"
    settings = {
        **{key: value for key, value in SMALL.items() if not key.startswith("model_settings")},
        "model_settings.encoder": str(exported),
        "length": "2 steps",
        "optimizer.learning_rate": "1e-12",
    }
    code, _, error = ptrain(
        "run", "--plugin", "multitask_bert", *with_settings(settings), "--out", "run"
    )
    assert code == 0, error
    given = load_file(exported / "model.safetensors")
    begun = plugin_trainer.load_run("run").model.encoder.state_dict()
    assert given.keys() == begun.keys()
    for name, value in given.items():
        torch.testing.assert_close(begun[name], value, atol=1e-6, rtol=0, msg=name)


def test_without_validation_data_the_last_weights_are_written(ptrain: Ptrain) -> None:
    Path("train.tsv").write_text("a good film\tpos\na bad film\tneg\n" * 4)
    Path("run.toml").write_text(
        'model = "multitask_bert/shared_encoder"\ndata = "multitask_bert/tasks"\n'
        'plugins = ["multitask_bert"]\nlength = "2 steps"\n'
        "[model_settings]\nhidden_size = 16\nnum_blocks = 1\nnum_heads = 2\n"
        '[data_settings.tasks.films]\ntrain = "train.tsv"\n'
    )
    code, _, error = ptrain("run", "run.toml", "--out", "run")
    assert code == 0, error
    assert [path.name for path in Path("run/hugging_face").iterdir()] == ["last"]
    saved = load_file("run/checkpoints/step-00000002/model.safetensors")
    exported = load_file("run/hugging_face/last/encoder/model.safetensors")
    for name, value in exported.items():
        assert torch.equal(saved[f"encoder.{name}"], value)


def test_an_average_is_written_where_it_is_asked_for(ptrain: Ptrain) -> None:
    settings = {
        **SMALL,
        "length": "4 steps",
        "ema.decay": "0.9",
        'callback_settings."multitask_bert/export".weights': '["last", "last_ema", "best_ema"]',
        'callback_settings."multitask_bert/export".folder': "hf",
    }
    code, _, error = ptrain(
        "run", "--plugin", "multitask_bert", *with_settings(settings), "--out", "run"
    )
    assert code == 0, error
    assert sorted(path.name for path in Path("run/hf").iterdir()) == [
        *("best_ema", "last", "last_ema"),
    ]
    average = load_file("run/checkpoints/step-00000004/ema.safetensors")
    exported = load_file("run/hf/last_ema/encoder/model.safetensors")
    for name, value in exported.items():
        assert torch.equal(average[f"encoder.{name}"], value)


def test_what_cannot_be_exported_is_said_and_fails_nothing(ptrain: Ptrain) -> None:
    Path("in_the_way.py").write_text(
        "PTRAIN_API = 1\n"
        "def ptrain_run_start(run):\n"
        "    (run.folder / 'hugging_face').write_text('a file')\n"
    )
    code, output, error = ptrain(
        *("run", "--plugin", "multitask_bert", "--plugin", "./in_the_way.py"),
        *with_settings({**SMALL, "length": "2 steps"}),
        *("--out", "run"),
    )
    assert code == 0, error
    assert "run/hugging_face/best was not written: " in output
