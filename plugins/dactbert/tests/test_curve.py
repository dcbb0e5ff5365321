"""`ptrain dactbert curve`: its figures beside the logits, its files, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.image import imread
from ptrain_dactbert.block_logits import BlockLogits
from ptrain_dactbert.curve.evidence import evidence
from ptrain_dactbert.curve.intervals import paired, wilson
from ptrain_dactbert.curve.picture import draw
from ptrain_dactbert.curve.printing import for_markdown, for_terminal
from ptrain_dactbert.curve.rules import Answers, Point, at_depth, depths_to_compare
from ptrain_dactbert.curve.runs import labelled
from ptrain_dactbert.curve.stopwatch import interleaved, summaries
from ptrain_dactbert.curve.theme import DARK

from plugin_trainer import load_run
from plugin_trainer.cli.main import main
from plugin_trainer.errors import PtrainError

# N blocks, B rows, C classes

pytestmark = pytest.mark.slow

NUM_BLOCKS, ROWS = 3, 300
SETTINGS = {
    "length": "40 steps",
    "evaluate": "40 steps",
    "save": "40 steps",
    "model_settings.hidden_size": 32,
    "model_settings.num_blocks": NUM_BLOCKS,
    "model_settings.num_heads": 2,
    "model_settings.initializer_range": 0.1,
    "optimizer.learning_rate": 1e-3,
    "precision": "fp32",
}


def write_texts(path: Path, count: int, *, seed: int) -> Path:
    """Texts with the label of the majority of their words, a few of them mislabelled."""
    luck = random.Random(seed)
    rows = []
    for _ in range(count):
        words = luck.choices(
            ["good", "fine", "bad", "poor", "a", "the", "film"], k=luck.choice([3, 5, 9])
        )
        score = sum((word in ("good", "fine")) - (word in ("bad", "poor")) for word in words)
        rows.append(f"{' '.join(words)}\t{int((score > 0) != (luck.random() < 0.05))}\n")
    path.write_text("".join(rows))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds with exits, a plain run of the first, a plain one of one block, learned halting."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_texts(folder / "train.tsv", 2000, seed=0)
    validation = write_texts(folder / "validation.tsv", ROWS, seed=1)

    def run(name: str, recipe: str, seed: int, **changes: Any) -> None:
        data = {"data_settings.train": train, "data_settings.validation": validation}
        settings = {**SETTINGS, **data, "seed": seed, **changes}
        calibrated = '["early_exit", "-progress_bar", "-tensorboard"]'
        settings.setdefault("callbacks", calibrated)
        arguments = [f"--set={key}={value}" for key, value in settings.items()]
        assert main(["run", recipe, *arguments, "--out", str(folder / name)]) == 0

    plain = {"model_settings.loss": "last", "callbacks": '["-progress_bar", "-tensorboard"]'}
    run("exits-0", "dactbert/exits", 0)
    run("exits-1", "dactbert/exits", 1)
    run("plain-0", "dactbert/exits", 0, **plain)
    run("short-5", "dactbert/exits", 5, **plain, **{"model_settings.num_blocks": 1})
    run("dact-0", "dactbert/classify", 0, **{"model_settings.initial_depth": 2.5})
    return folder


@pytest.fixture(scope="module")
def compared(runs: Path) -> Path:
    """The folder of the whole comparison, with times."""
    out = runs / "out"
    names = ["exits-0", "exits-1", "--against", "plain-0", "short-5", "dact-0"]
    arguments = [name if name.startswith("-") else str(runs / name) for name in names]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    timing = ["--rounds", "2", "--batch", "64", "--batch", "150", "--threads", "1"]
    assert main(["dactbert", "curve", *arguments, "--out", str(out), *timing]) == 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def document(compared: Path) -> dict[str, Any]:
    """All its figures."""
    figures: dict[str, Any] = json.loads((compared / "curve.json").read_text())
    return figures


@pytest.fixture(scope="module")
def logits(runs: Path) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """The logits [N, B, C] of a run, and the labels."""

    def of(name: str) -> tuple[np.ndarray, np.ndarray]:
        loaded = load_run(runs / name)
        parts, labels = [], []
        for batch in loaded.data.validation():
            with torch.no_grad():
                z_NBC, _ = loaded.model.block_logits(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                )
            parts.append(z_NBC.double().numpy())
            labels.append(batch["labels"].numpy())
        return np.concatenate(parts, 1), np.concatenate(labels)

    return of


def margins(z_NBC: np.ndarray) -> np.ndarray:
    top = np.sort(z_NBC, -1)
    return top[..., -1] - top[..., -2]


def entropies(z_NBC: np.ndarray) -> np.ndarray:
    p = np.exp(z_NBC - z_NBC.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1)


def leave(may_NB: np.ndarray) -> np.ndarray:
    """The first block, from 1, where a row may leave; the last one at the latest."""
    may_NB = may_NB.copy()
    may_NB[-1] = True
    return may_NB.argmax(0) + 1


def rates(z_NBC: np.ndarray, y_B: np.ndarray, block_B: np.ndarray) -> tuple[float, float, float]:
    answers_NB = z_NBC.argmax(-1)
    answer_B = answers_NB[block_B - 1, np.arange(len(y_B))]
    return block_B.mean(), (answer_B == y_B).mean(), (answer_B == answers_NB[-1]).mean()


@pytest.mark.parametrize("number", [0, 1])
def test_every_setting_of_every_rule_is_what_the_logits_say(
    document: dict[str, Any], logits: Callable[..., Any], number: int
) -> None:
    run = document["recipe"]["runs"][number]
    z_NBC, y_B = logits(run["name"])
    intercepts, slopes = (np.array(run[key])[:, None] for key in ("intercepts", "slopes"))
    scores_NB = np.concatenate([intercepts + slopes * margins(z_NBC[:-1]), np.full((1, ROWS), 1e9)])
    entropy_NB = entropies(z_NBC)
    answers_NB = z_NBC.argmax(-1)
    repeats_NB = np.zeros_like(answers_NB)
    for block in range(1, NUM_BLOCKS):
        same_B = answers_NB[block] == answers_NB[block - 1]
        repeats_NB[block] = np.where(same_B, repeats_NB[block - 1] + 1, 0)
    tolerance = 1e-9  # a threshold is one of the entropies, which are computed another way here
    blocks_by = {
        "agreement": lambda level: leave(scores_NB >= level - tolerance),
        "entropy": lambda threshold: leave(entropy_NB <= threshold + tolerance),
        "patience": lambda patience: leave(repeats_NB >= patience),
    }
    assert set(run["settings"]) == set(blocks_by)
    for rule, block_of in blocks_by.items():
        points = run["settings"][rule]
        assert len(points) > 100 or rule == "patience"
        for point in points:
            found = point["blocks"], point["accuracy"], point["agreement"]
            expected = rates(z_NBC, y_B, block_of(point["setting"]))
            assert found == pytest.approx(expected, abs=1e-12), (rule, point)
    assert points[-1]["agreement"] == 1.0
    full = (answers_NB[-1] == y_B).mean()
    assert run["full"]["accuracy"]["mean"] == pytest.approx(full)


def test_at_equal_blocks_settings_are_mixed_in_proportion(document: dict[str, Any]) -> None:
    """The mean over the seeds of what lies between two settings, on a straight line."""
    recipe = document["recipe"]
    assert document["depths"] == [1.0, 1.25, 1.5]
    for rule, at in recipe["at_depth"].items():
        for depth, figures in zip(document["depths"], at, strict=True):
            lines = [
                np.array(
                    [[p["blocks"], p["accuracy"], p["agreement"]] for p in run["settings"][rule]]
                )
                for run in recipe["runs"]
            ]
            if figures is None:
                assert any(depth < line[:, 0].min() for line in lines)
                continue
            for column, rate in ((1, "accuracy"), (2, "agreement")):
                values = [np.interp(depth, line[:, 0], line[:, column]) for line in lines]
                spread = figures[rate]
                assert spread["mean"] == pytest.approx(np.mean(values), abs=1e-9)
                assert (spread["min"], spread["max"]) == pytest.approx((min(values), max(values)))
            assert figures["blocks"]["mean"] == pytest.approx(depth)


def test_promises_are_those_of_the_runs_own_calibration(
    runs: Path, document: dict[str, Any], logits: Callable[..., Any]
) -> None:
    for run in document["recipe"]["runs"]:
        assert run["map"] == f"the run's own, {ROWS} rows"
        (entry,) = json.loads((runs / run["name"] / "early_exit.json").read_text()).values()
        assert run["slopes"] == entry["agreement_map"]["slopes"]
        level = {item["max_disagreement"]: item["level"] for item in entry["certified"]}[0.02]
        assert run["levels"]["2%"] == level
        z_NBC, y_B = logits(run["name"])
        scores_NB = np.array(run["intercepts"] + [1e9])[:, None] + np.array(run["slopes"] + [0.0])[
            :, None
        ] * margins(z_NBC)
        blocks, accuracy, agreement = rates(z_NBC, y_B, leave(scores_NB >= level))
        found = run["promised"]["2%"]
        assert found["blocks"]["mean"] == pytest.approx(blocks)
        assert found["accuracy"]["mean"] == pytest.approx(accuracy)
        assert found["agreement"]["mean"] == pytest.approx(agreement)
        assert run["promised"]["lossless"]["own_agreement"]["mean"] == 1.0


def test_differences_are_paired_by_row_and_seed(
    document: dict[str, Any], logits: Callable[..., Any]
) -> None:
    """The plain run has the first seed alone: the second run is paired with the mean, the same."""
    z_NBC, y_B = logits("plain-0")
    plain_B = (z_NBC[-1].argmax(-1) == y_B).astype(float)
    ours = [logits(run["name"]) for run in document["recipe"]["runs"]]
    differences = np.array([(z[-1].argmax(-1) == y).astype(float) - plain_B for z, y in ours])
    by_row_B = differences.mean(0)
    half = 1.959963984540054 * by_row_B.std(ddof=1) / math.sqrt(ROWS)
    (found,) = [
        item
        for item in document["differences"]
        if item["minus"] == "plain, 3 blocks" and item["blocks"] == NUM_BLOCKS
    ]
    accuracy = found["accuracy"]
    assert accuracy["mean"] == pytest.approx(by_row_B.mean())
    assert accuracy["low"] == pytest.approx(by_row_B.mean() - half)
    assert accuracy["high"] == pytest.approx(by_row_B.mean() + half)
    assert accuracy["by_seed"] == pytest.approx(differences.mean(1))
    assert found["paired_by"] == "the run with the same seed, or else the mean of its runs"
    others = {item["minus"]: item["paired_by"] for item in document["differences"]}
    assert others["plain, 1 block"] == "the mean of its runs"
    assert others["entropy"] == "run"


def test_a_run_is_paired_with_the_one_of_its_own_seed(runs: Path, tmp_path: Path) -> None:
    """With itself, here: no row differs, which the mean of both seeds would not give."""
    for seed in (0, 1):
        shutil.copytree(runs / f"exits-{seed}", tmp_path / f"again-{seed}")
    figures = evidence(
        [str(runs / "exits-1")],
        against=[str(tmp_path / "again-0"), str(tmp_path / "again-1")],
        split="validation",
        overrides=None,
        timing=None,
        progress=lambda line: None,
    )
    same = [item for item in figures["differences"] if item["minus"] == "again"]
    assert [item["blocks"] for item in same] == [1.0, 1.25, 1.5, NUM_BLOCKS]
    for item in same:
        assert (item["accuracy"]["low"], item["accuracy"]["high"]) == (0.0, 0.0)
        assert item["paired_by"] == "the run with the same seed"


def test_rows_without_a_label_are_left_out() -> None:
    texts = tuple({"input_ids": torch.arange(length)} for length in (3, 4, 5))
    z_NBC = torch.randn(2, 3, 2).double()
    halting_NB = torch.randn(2, 3).double()
    rows = BlockLogits(z_NBC, halting_NB, torch.tensor([1, -100, 0]), texts, "")
    kept = labelled(rows, of="run", way_out="label some")
    assert kept.labels_B is not None and kept.labels_B.tolist() == [1, 0]
    assert kept.lengths_B.tolist() == [3, 5]
    assert torch.equal(kept.logits_NBC, z_NBC[:, [0, 2]])
    assert kept.halting_NB is not None and torch.equal(kept.halting_NB, halting_NB[:, [0, 2]])
    for none in (torch.tensor([-100, -100, -100]), None):
        with pytest.raises(PtrainError, match="run: no row of the split has a label"):
            labelled(replace(rows, labels_B=none), of="run", way_out="label some")


def test_baselines_are_points_or_curves(document: dict[str, Any]) -> None:
    plain, short, dact = document["baselines"]
    assert (plain["kind"], plain["num_blocks"]) == ("plain", NUM_BLOCKS)
    assert (short["label"], short["num_blocks"]) == ("plain, 1 block", 1)
    assert short["full"]["blocks"]["mean"] == 1
    assert dact["label"] == "dact-0"
    assert set(dact["curves"]) == {"agreement", "entropy", "patience", "delta"}
    lossless = [p for p in dact["runs"][0]["settings"]["delta"] if p["setting"] == 0.0]
    assert lossless[0]["own_agreement"] == 1.0
    # What it answers to the end is what lossless exits answer.
    assert dact["accumulated"]["accuracy"]["mean"] == lossless[0]["accuracy"]
    assert "accumulated" not in document["recipe"]


def test_lossless_exits_agree_with_their_own_mixture_not_with_the_last_block(
    runs: Path, document: dict[str, Any], logits: Callable[..., Any]
) -> None:
    """The accumulated answer a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}, in numpy."""
    z_NBC, y_B = logits("dact-0")
    loaded = load_run(runs / "dact-0")
    halting = []
    for batch in loaded.data.validation():
        with torch.no_grad():
            _, u_NB = loaded.model.block_logits(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        halting.append(u_NB.double().numpy())
    goes_on_NB = (1 / (1 + np.exp(-np.concatenate(halting, 1)))).cumprod(0)
    y_NBC = np.exp(z_NBC) / np.exp(z_NBC).sum(-1, keepdims=True)
    mixed_BC = y_NBC[0]
    for block in range(1, NUM_BLOCKS):
        p_B1 = goes_on_NB[block - 1][:, None]
        mixed_BC = p_B1 * y_NBC[block] + (1 - p_B1) * mixed_BC
    agreement = (mixed_BC.argmax(-1) == z_NBC[-1].argmax(-1)).mean()
    assert agreement < 1
    dact = document["baselines"][-1]
    (lossless,) = [p for p in dact["runs"][0]["settings"]["delta"] if p["setting"] == 0.0]
    assert lossless["agreement"] == pytest.approx(agreement)
    assert lossless["accuracy"] == pytest.approx((mixed_BC.argmax(-1) == y_B).mean())


def test_exits_are_counted_by_label_and_length(
    document: dict[str, Any], logits: Callable[..., Any]
) -> None:
    exits = document["exits"]
    assert exits["chosen"] == "certified for 2%"
    counts = {name: of["count"] for name, of in exits["by_label"].items()}
    _, y_B = logits("exits-0")
    assert counts == {str(label): int((y_B == label).sum()) for label in (0, 1)}
    # Three, five or nine words between two special tokens.
    assert set(exits["by_length"]) <= {"5", "7", "11", "5-7", "7-11"}
    for groups in (exits["by_label"], exits["by_length"]):
        histograms = np.array([group["histogram"] for group in groups.values()])
        assert histograms.sum(0).tolist() == exits["all"]["histogram"]
    assert sum(exits["all"]["histogram"]) == ROWS
    run = document["recipe"]["runs"][0]
    z_NBC, _ = logits("exits-0")
    intercepts, slopes = (np.array(run[key])[:, None] for key in ("intercepts", "slopes"))
    may_NB = intercepts + slopes * margins(z_NBC[:-1]) >= exits["level"]
    block_B = leave(np.concatenate([may_NB, np.ones((1, ROWS), dtype=bool)]))
    for label in (0, 1):
        expected = np.bincount(block_B[y_B == label], minlength=NUM_BLOCKS + 1)[1:]
        assert exits["by_label"][str(label)]["histogram"] == expected.tolist()


def test_times_are_those_of_everything_at_every_batch_size(document: dict[str, Any]) -> None:
    timing = document["timing"]
    assert (timing["run"], timing["threads"], timing["rounds"]) == ("exits-0", 1, 2)
    assert list(timing["batches"]) == ["64", "150"]
    for by_name in timing["batches"].values():
        names = ["unmodified", "checked, no exit", "1.25 blocks", "2%", "plain, 1 block"]
        assert {*names, "re-batched"} <= set(by_name)
        assert by_name["re-batched"]["blocks"] == by_name["2%"]["blocks"]
        assert by_name["unmodified"]["ratio"] == 1.0
        assert by_name["1.5 blocks"]["blocks"] == pytest.approx(1.5, abs=0.01)
        for its in by_name.values():
            assert 0 < its["median_ms"] <= its["p95_ms"]
            assert its["ratio_min"] <= its["ratio"] <= its["ratio_max"]


def test_the_files_are_a_page_and_pictures_in_light_and_dark(compared: Path) -> None:
    names = {path.name for path in compared.iterdir()}
    pictures = {f"curve{dark}.{kind}" for dark in ("", "-dark") for kind in ("svg", "png")}
    assert names == {"curve.md", "curve.json", *pictures}
    light, dark = (imread(compared / f"curve{which}.png") for which in ("", "-dark"))
    assert light.shape == dark.shape
    assert light[..., :3].mean() > 0.8
    assert dark[..., :3].mean() < 0.3
    for which in ("", "-dark"):
        root = ElementTree.parse(compared / f"curve{which}.svg").getroot()
        assert root.tag.endswith("svg")
    page = (compared / "curve.md").read_text()
    assert 'srcset="curve-dark.svg"' in page
    assert "| 1.50 | estimated agreement | 0." in page


def test_the_same_figures_give_the_same_picture(
    compared: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    with rc_context(DARK.settings()):
        draw(document, DARK).savefig(tmp_path / "again.svg", metadata={"Date": None})
    assert (tmp_path / "again.svg").read_bytes() == (compared / "curve-dark.svg").read_bytes()


def test_the_terminal_and_the_page_have_the_same_tables(document: dict[str, Any]) -> None:
    shown = for_terminal(document)
    assert all(len(line) <= 80 for line in shown.splitlines())
    titles = [line[3:] for line in for_markdown(document).splitlines() if line.startswith("## ")]
    assert len(titles) == 7
    assert all(title in shown for title in titles)


def test_long_names_and_many_blocks_fit_the_terminal(document: dict[str, Any]) -> None:
    text = json.dumps(document).replace("exits-0", "a-run-with-quite-a-long-name-of-its-own-0")
    wide = json.loads(text.replace("plain, 3 blocks", "another recipe with a very long name"))
    for group in (wide["exits"]["all"], *wide["exits"]["by_label"].values()):
        group["histogram"] = [group["count"], *[0] * 23]
    wide["exits"]["by_length"] = {}
    assert all(len(line) <= 80 for line in for_terminal(wide).splitlines())


def test_a_map_of_another_precision_is_not_used(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--no-timing", "--set", "precision=bf16", "--json", "--out", str(tmp_path)]
    capsys.readouterr()
    assert main(["dactbert", "curve", str(runs / "exits-0"), *arguments]) == 0
    (run,) = json.loads(capsys.readouterr().out)["recipe"]["runs"]
    assert run["map"] == f"fitted on these {ROWS} rows"
    assert run["precision"] == "bf16"
    low, high = (run["full"]["accuracy"][key] for key in ("low", "high"))
    assert (low, high) == pytest.approx(wilson(run["full"]["accuracy"]["mean"], ROWS))
    assert not (tmp_path / "curve.json").read_text().count('"timing"')


# ------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("correct", "rows"), [(0, 20), (9, 10), (766, 872), (872, 872)])
def test_the_interval_is_that_of_the_score_test(correct: int, rows: int) -> None:
    """Wilson's bounds are the rates that the normal test of the rate just does not reject."""

    def z(rate: float) -> float:
        return (correct / rows - rate) / math.sqrt(rate * (1 - rate) / rows)

    def bound(sign: int) -> float:
        accepted, rejected = correct / rows, float(sign > 0)
        for _ in range(200):
            middle = (accepted + rejected) / 2
            inside = 0 < middle < 1 and abs(z(middle)) < 1.959963984540054
            accepted, rejected = (middle, rejected) if inside else (accepted, middle)
        return accepted

    low, high = wilson(correct / rows, rows)
    if correct:
        assert low == pytest.approx(bound(-1), abs=1e-9)
    if correct < rows:
        assert high == pytest.approx(bound(+1), abs=1e-9)
    assert -1e-12 <= low < high <= 1 + 1e-12


def test_a_paired_interval_holds_the_difference_as_often_as_it_says() -> None:
    luck = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        one, other = luck.random((2, 300)) < np.array([[0.88], [0.86]])
        other = np.where(luck.random(300) < 0.8, one & (luck.random(300) < 0.9773), other)
        truth = 0.8 * 0.88 * (1 - 0.9773) + 0.2 * 0.02
        difference = paired(torch.tensor((one.astype(float) - other)[None]))
        held += difference["low"] <= truth <= difference["high"]
    assert 925 <= held <= 975


def answers(blocks: list[int], correct: list[int]) -> Answers:
    correct_R = torch.tensor(correct).bool()
    return Answers(torch.tensor(blocks), correct_R, correct_R, correct_R)


def test_between_two_settings_rows_are_shared_out() -> None:
    points = [
        Point(1.0, answers([1, 1, 1, 1], [1, 0, 0, 0])),
        Point(2.0, answers([1, 3, 3, 3], [1, 1, 1, 0])),
    ]
    mixed = at_depth(points, 2.0)
    assert mixed is not None
    share = (2.0 - 1.0) / (2.5 - 1.0)
    assert mixed.block_R.tolist() == pytest.approx([1, *[1 + 2 * share] * 3])
    assert mixed.correct_R.tolist() == pytest.approx([1, share, share, 0])
    assert mixed.summary()["accuracy"] == pytest.approx((1 + 2 * share) / 4)
    assert at_depth(points, 2.5) is points[1].answers
    assert at_depth(points, 2.6) is None
    assert at_depth(points, 0.9) is None


def test_depths_are_in_proportion_to_the_blocks() -> None:
    assert depths_to_compare(6) == [1.5, 2.0, 2.5, 3.0]
    assert depths_to_compare(12) == [3.0, 4.0, 5.0, 6.0]
    assert depths_to_compare(2) == [1.0]
    assert depths_to_compare(1) == []


def test_times_are_shares_of_the_unmodified_encoder() -> None:
    seconds = {
        "unmodified": [[0.010, 0.040], [0.010, 0.030]],
        "exit": [[0.005, 0.020], [0.005, 0.010]],
    }
    found = dict(summaries(seconds, rows=[1, 2]))
    assert found["unmodified"]["ratio"] == 1.0
    exit_ = found["exit"]
    assert exit_["median_ms"] == pytest.approx(5.0)
    assert exit_["p95_ms"] == pytest.approx(np.percentile([5, 10, 5, 5], 95))
    assert exit_["mean_ms"] == pytest.approx(1000 * 0.040 / 6)
    assert (exit_["ratio_min"], exit_["ratio_max"]) == pytest.approx((0.375, 0.5))
    assert exit_["ratio"] == pytest.approx(0.4375)


def test_a_batch_is_answered_by_all_before_the_next_one() -> None:
    calls: list[tuple[str, int]] = []
    work = {name: lambda batch, name=name: calls.append((name, batch)) for name in "abc"}
    seconds = interleaved(work, [0, 1, 2, 3], rounds=2, device=torch.device("cpu"))
    assert [len(of) for by_round in seconds.values() for of in by_round] == [4] * 6
    timed = calls[len(work) * 2 :]
    groups = [timed[first : first + 3] for first in range(0, len(timed), 3)]
    assert [{batch for _, batch in group} for group in groups] == [{0}, {1}, {2}, {3}] * 2
    assert all({name for name, _ in group} == set("abc") for group in groups)
    assert len({tuple(name for name, _ in group) for group in groups}) > 1


# ---------------------------------------------------------------------------------------- refused


@pytest.fixture
def refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one message about these runs."""

    def by(*arguments: str) -> str:
        known = [str(runs / name) if (runs / name).is_dir() else name for name in arguments]
        capsys.readouterr()
        command = ["dactbert", "curve", *known, "--no-timing", "--out", str(tmp_path / "out")]
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told[told.index("error: ") :]

    return by


def copy_of(runs: Path, name: str, *, to: Path, rows: Path) -> Path:
    """A copy of a run that validates on other rows."""
    shutil.copytree(runs / name, to)
    settings = (to / "run.toml").read_text()
    (to / "run.toml").write_text(settings.replace(str(runs / "validation.tsv"), str(rows)))
    return to


def test_a_plain_run_is_a_baseline(refused: Callable[..., str]) -> None:
    told = refused("plain-0")
    assert "plain-0 answers after its last block only" in told
    assert "--against plain-0" in told


def test_runs_of_two_recipes_are_not_seeds(refused: Callable[..., str]) -> None:
    told = refused("exits-0", "dact-0")
    assert "exits-0 and dact-0 were not trained alike" in told
    assert "--against dact-0" in told


def test_a_run_counts_once(refused: Callable[..., str]) -> None:
    assert "is given twice" in refused("exits-0", "--against", "plain-0", "exits-0")


def test_other_rows_cannot_be_compared(
    refused: Callable[..., str], runs: Path, tmp_path: Path
) -> None:
    text = (runs / "validation.tsv").read_text()
    rows = tmp_path / "other.tsv"
    other = copy_of(runs, "exits-1", to=tmp_path / "exits-9", rows=rows)
    rows.write_text(text.replace("film", "poor"))
    assert "exits-9 has other rows, or other tokens" in refused("exits-0", str(other))
    flipped = [line[:-1] + str(1 - int(line[-1])) + "\n" for line in text.splitlines()]
    rows.write_text("".join(flipped))
    assert "exits-9 has other rows" in refused("exits-0", str(other))


def test_other_labels_cannot_be_compared(
    refused: Callable[..., str], runs: Path, tmp_path: Path
) -> None:
    text = (runs / "validation.tsv").read_text()
    rows = tmp_path / "named.tsv"
    rows.write_text(text.replace("\t0\n", "\tno\n").replace("\t1\n", "\tyes\n"))
    other = copy_of(runs, "plain-0", to=tmp_path / "named", rows=rows)
    labels = next(other.glob("assets/**/labels.json"))
    labels.write_text(json.dumps({"labels": ["no", "yes"]}))
    about = json.loads((other / "run.json").read_text())
    del about["assets"]  # the hashes
    (other / "run.json").write_text(json.dumps(about))
    told = refused("exits-0", "--against", str(other))
    assert "named was trained with the labels no, yes, exits-0 with 0, 1" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "exits-0 has no data for the split 'test'"),
        (["--set", "data_settings.validation=nowhere.tsv"], "nowhere.tsv"),
        (["--set", "data_settings.validation=EMPTY"], "empty.tsv"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_judged_is_one_message(
    refused: Callable[..., str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    known = [argument.replace("EMPTY", str(empty)) for argument in arguments]
    assert message in refused("exits-0", *known)


def test_a_model_without_exits_is_refused(
    refused: Callable[..., str], runs: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "bags.py"
    plugin.write_text(MODEL_WITHOUT_EXITS)
    settings = {
        "model": "bags/bag",
        "data": "dactbert/text_classification",
        "data_settings.train": runs / "train.tsv",
        "data_settings.validation": runs / "validation.tsv",
        "length": "1 step",
        "callbacks": '["-progress_bar", "-tensorboard"]',
    }
    arguments = [f"--set={key}={value}" for key, value in settings.items()]
    out = ["--out", str(tmp_path / "bag")]
    assert main(["run", "--plugin", str(plugin), "--plugin", "dactbert", *arguments, *out]) == 0
    told = refused("exits-0", "--against", str(tmp_path / "bag"))
    assert "bag: bags/bag has no early exit" in told


MODEL_WITHOUT_EXITS = """
import torch
from plugin_trainer import ModelSpec

PTRAIN_API = 1


class Bag(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.words = torch.nn.EmbeddingBag(data.vocabulary_size, data.num_labels)

    def forward(self, input_ids, labels=None, **_):
        logits = self.words(input_ids)
        loss = torch.nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return {"loss": loss, "logits": logits}


def ptrain_models():
    return [ModelSpec(name="bag", target="ptrain_local_bags:Bag", default=True)]
"""


def test_without_matplotlib_the_extra_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "ptrain-dactbert[curve]"' in refused("exits-0")
