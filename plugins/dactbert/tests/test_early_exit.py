"""A run calibrates its exits at its end; evaluate and predict then leave early by one knob."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from plugin_trainer import load_run
from plugin_trainer.cli.main import main
from plugin_trainer.early_exit.blocks import find_blocks
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import from_assignments

NUM_BLOCKS = 3
SETTINGS = {
    "length": "80 steps",
    "evaluate": "80 steps",
    "save": "80 steps",
    "callbacks": '["dactbert/exit_statistics", "early_exit", "-progress_bar", "-tensorboard"]',
    "model_settings.hidden_size": 32,
    "model_settings.num_blocks": NUM_BLOCKS,
    "model_settings.num_heads": 2,
    "model_settings.initializer_range": 0.1,
    "optimizer.learning_rate": 2e-3,
    "precision": "fp32",
}


def write_texts(path: Path, count: int, *, seed: int) -> Path:
    """Texts of words for and against, in a line each with the label of the majority."""
    luck = random.Random(seed)
    rows = []
    for _ in range(count):
        words = luck.choices(
            ["good", "fine", "bad", "poor", "a", "the", "film"], k=luck.choice([3, 5, 9])
        )
        score = sum((word in ("good", "fine")) - (word in ("bad", "poor")) for word in words)
        rows.append(f"{' '.join(words)}\t{int(score > 0)}\n")
    path.write_text("".join(rows))
    return path


def train(folder: Path, *first: str, rows: int = 400, **changes: Any) -> Path:
    """A run of a small encoder on such texts."""
    folder.parent.mkdir(exist_ok=True)
    train_file = write_texts(folder.parent / "train.tsv", 2000, seed=0)
    validation_file = write_texts(folder.parent / "validation.tsv", rows, seed=1)
    settings = SETTINGS | {
        "data_settings.train": train_file,
        "data_settings.validation": validation_file,
        **changes,
    }
    arguments = [f"--set={key}={value}" for key, value in settings.items()]
    assert main(["run", *first, *arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the recipe dactbert/exits, of a small encoder."""
    return train(tmp_path_factory.mktemp("exits") / "run", "dactbert/exits")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, float]]:
    """The metrics of the run by an exit."""

    def by(exit_: str, *more: str) -> dict[str, float]:
        capsys.readouterr()
        assert main(["evaluate", str(run), "--exit", exit_, "--json", *more]) == 0
        metrics: dict[str, float] = json.loads(capsys.readouterr().out)
        return metrics

    return by


def test_a_run_ends_with_its_exits_calibrated(trained: Path) -> None:
    ((key, entry),) = json.loads((trained / "early_exit.json").read_text()).items()
    assert key.startswith("step-00000080/raw/")
    assert (entry["precision"], entry["rows"], entry["apart"]) == ("fp32", 400, False)
    assert len(entry["agreement_map"]["slopes"]) == NUM_BLOCKS - 1
    assert [item["max_disagreement"] for item in entry["certified"]] == [0.01, 0.02]


def test_each_promise_is_kept_on_the_rows_it_was_certified_on(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    off, one, two = (evaluated(exit_) for exit_ in ("off", "1%", "2%"))
    assert off["val/mean_exit_block"] == NUM_BLOCKS
    assert off["val/last_block_agreement"] == off["val/exit_agreement"] == 1.0
    assert one["val/last_block_agreement"] >= 0.99
    assert two["val/last_block_agreement"] >= 0.98
    assert two["val/mean_exit_block"] <= one["val/mean_exit_block"] < NUM_BLOCKS
    # A bolder level leaves earlier, and the boldest after the first block.
    assert evaluated("-50")["val/mean_exit_block"] == 1.0


def test_lossless_agrees_with_its_own_full_answer_on_every_row(
    evaluated: Callable[..., dict[str, float]],
) -> None:
    metrics = evaluated("lossless")
    assert metrics["val/exit_agreement"] == 1.0
    assert metrics["val/last_block_agreement"] > 0.9
    assert metrics["val/mean_exit_block"] < NUM_BLOCKS


def texts_of(run: Path, count: int) -> list[str]:
    loaded = load_run(run)
    rows = [ids for batch in loaded.data.validation() for ids in batch["input_ids"]]
    decode = loaded.data.tokenizer.decode
    return [str(decode(ids, skip_special_tokens=True)) for ids in rows[:count]]


@pytest.mark.parametrize("exit_", ["off", "1%", "lossless", "0.5"])
def test_predictions_are_those_of_all_blocks_run(run: Path, exit_: str) -> None:
    """The blocks of rows that have left do not run, and the answers are the same."""
    loaded = load_run(run)
    loaded.use_exit(exit_)
    lines = texts_of(run, 256)
    calls: list[int] = []
    for block in find_blocks(loaded.model.encoder):
        block.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    answers = list(loaded.predict(lines))
    rows_run = sum(calls)
    assert rows_run == sum(answer["exit_block"] for answer in answers)
    assert (rows_run < 256 * NUM_BLOCKS) == (exit_ != "off")

    blocks, probabilities = torch.zeros(256, dtype=torch.int64), torch.zeros(256, 2)
    for batch in loaded.data.predict(lines):
        with torch.inference_mode():
            logits_NBC, _ = loaded.model.block_logits(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
            expected = loaded.model.answer_of_blocks(logits_NBC, None)
        blocks[batch["line"]] = expected["exit_block"]
        probabilities[batch["line"]] = expected["logits"].exp()
    assert [answer["exit_block"] for answer in answers] == blocks.tolist()
    found = torch.tensor([list(answer["probabilities"].values()) for answer in answers])
    torch.testing.assert_close(found, probabilities, atol=1e-5, rtol=0)


def test_the_survivors_of_a_window_share_batches(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block takes more rows than a batch has, and later blocks take fuller ones than they were
    left with; every line has the answer that it has alone.
    """
    loaded = load_run(run, overrides=from_assignments(["data_settings.evaluation_batch_size=16"]))
    loaded.use_exit("1%")
    lines = texts_of(run, 256)
    block, calls = type(find_blocks(loaded.model.encoder)[0]), []
    forward = block.forward

    @wraps(forward)
    def count(self: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(states))
        return forward(self, states, *args, **kwargs)

    monkeypatch.setattr(block, "forward", count)
    answers = list(loaded.predict(lines))
    exits = [answer["exit_block"] for answer in answers]
    assert max(calls) == 16
    assert sum(calls) == sum(exits)
    # One window of 16 batches: 16 calls of the first block, of others as few as there can be.
    assert len(calls) == 16 + sum(-(-sum(at > n for at in exits) // 16) for n in (1, 2))
    loaded.data.predict, in_windows = partial(one_by_one, loaded.data.predict), answers
    for alone, answer in zip(loaded.predict(lines), in_windows, strict=True):
        assert (alone["label"], alone["exit_block"]) == (answer["label"], answer["exit_block"])
        for name, probability in alone["probabilities"].items():
            assert probability == pytest.approx(answer["probabilities"][name], abs=1e-5)


def one_by_one(predict: Callable[..., Any], lines: list[str]) -> Iterator[dict[str, Any]]:
    """Each line in a batch of its own, and not sorted."""
    for line in lines:
        (batch,) = predict([line])
        del batch["line"]
        yield batch


def test_a_row_alone_is_answered_as_among_others(run: Path) -> None:
    loaded = load_run(run)
    loaded.use_exit("1%")
    lines = texts_of(run, 16)
    together = list(loaded.predict(lines))
    for line, answer in zip(lines, together, strict=True):
        (alone,) = loaded.predict([line])
        assert (alone["label"], alone["exit_block"]) == (answer["label"], answer["exit_block"])


def test_the_command_calibrates_on_texts_without_labels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "texts.txt"
    rows.write_text("\n".join(texts_of(run, 32) * 10))
    capsys.readouterr()
    command = ["dactbert", "calibrate", str(run), "--rows", str(rows)]
    assert main([*command, "--max-disagreement", "5%", "--apart"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2] == "320 rows in fp32; tested on other rows"
    assert shown[3].startswith("--exit 5%    level ")
    assert all(len(line) <= 80 for line in shown[2:])
    entry = next(iter(json.loads((run / "early_exit.json").read_text()).values()))
    assert entry["apart"] is True
    assert entry["certified"][0]["rows"] == 213


def test_promises_on_the_same_rows_add_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dactbert", "calibrate", str(run), "--max-disagreement", "10%", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert [item["max_disagreement"] for item in entry["certified"]] == [0.01, 0.02, 0.1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-disagreement", "0.5%"], "too few rows: 598 are needed"),
        (["--max-disagreement", "no"], "no is no share; write it as 1%"),
        (["--rows", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_calibrated_is_one_message(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["dactbert", "calibrate", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_rows_of_one_class_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "texts.txt"
    rows.write_text("\n".join(texts_of(run, 1) * 400))
    assert main(["dactbert", "calibrate", str(run), "--rows", str(rows)]) == 2
    assert "gives all 400 calibration rows the same class" in capsys.readouterr().err


def test_a_run_that_learned_to_halt_takes_the_same_knob(tmp_path: Path) -> None:
    """Lossless needs no calibration there; a promise does, and can have one."""
    run = train(
        tmp_path / "run",
        "--plugin=dactbert",
        callbacks='["-progress_bar", "-tensorboard"]',
        **{"model_settings.initial_depth": 2.0},
    )
    loaded = load_run(run)
    default = loaded.evaluate()
    loaded.use_exit("lossless")
    assert loaded.evaluate()["val/mean_exit_block"] == default["val/mean_exit_block"]
    with pytest.raises(PtrainError, match="needs a calibration"):
        loaded.use_exit("1%")
    assert main(["dactbert", "calibrate", str(run), "--max-disagreement", "5%"]) == 0
    loaded.use_exit("5%")
    assert loaded.evaluate()["val/last_block_agreement"] >= 0.95
    loaded.use_exit("off")
    assert loaded.evaluate()["val/mean_exit_block"] == NUM_BLOCKS


def test_a_short_run_is_not_lost_for_its_exits(tmp_path: Path, capsys: Any) -> None:
    """50 validation rows are too few for any promise: the run says so, and ends well."""
    train(tmp_path / "run", "dactbert/exits", rows=50)
    assert "too few rows: 299 are needed to promise at most 1.00%" in capsys.readouterr().out


def test_the_address_of_a_recipe_stands_for_a_run_file(capsys: Any) -> None:
    assert main(["config", "show", "dactbert/exits"]) == 0
    assert 'loss = "joint"' in capsys.readouterr().out
    assert main(["config", "check", "dactbert/classify"]) == 0
    capsys.readouterr()
    assert main(["config", "check", "dactbert/exit"]) == 2
    assert "did you mean 'dactbert/exits'?" in capsys.readouterr().err
    assert main(["config", "check", "folder/small"]) == 2
    assert "there is no run file folder/small" in capsys.readouterr().err


def test_a_calibration_is_of_its_weights_alone(run: Path) -> None:
    """A checkpoint that was written again under the same step has other weights."""
    manifest = run / "checkpoints" / "step-00000080" / "manifest.json"
    loaded = load_run(run)
    loaded.use_exit("1%")
    about = json.loads(manifest.read_text())
    about["files"]["model.safetensors"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(about))
    with pytest.raises(PtrainError, match="needs a calibration of these weights") as caught:
        loaded.use_exit("1%")
    assert "--checkpoint step-00000080 --weights raw" in str(caught.value)


def test_a_refused_calibration_leaves_the_earlier_one(run: Path, tmp_path: Path) -> None:
    before = (run / "early_exit.json").read_text()
    rows = tmp_path / "few.txt"
    rows.write_text("\n".join(texts_of(run, 40)))
    assert main(["dactbert", "calibrate", str(run), "--rows", str(rows)]) == 2
    assert (run / "early_exit.json").read_text() == before


def test_a_run_is_not_lost_for_a_calibration_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plugin_trainer.early_exit.calibrate.write_calibration", no_space)
    run = train(tmp_path / "run", "dactbert/exits")
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "not calibrated: [Errno 28] No space left on device" in capsys.readouterr().out
