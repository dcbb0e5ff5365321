"""The callback: what it gathers, where it writes it, and the table it shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ptrain_dactbert.exit_groups import by_length
from ptrain_dactbert.exit_statistics import ExitStatistics
from ptrain_dactbert.settings import ExitStatisticsSettings

from plugin_trainer import StepOutcome
from plugin_trainer.training.distributed.world import ALONE, World
from tests import forkserver


class Run(SimpleNamespace):
    """What the callback uses of a run."""

    def __init__(self, folder: Path | None, num_blocks: int = 4, world: World = ALONE) -> None:
        model = SimpleNamespace(num_blocks=num_blocks)
        super().__init__(folder=folder, model=model, reports={}, world=world)

    def report(self, title: str, text: str) -> None:
        self.reports[title] = text


def outcome(blocks: list[int], *, answers: list[int], full: list[int]) -> StepOutcome:
    one_hot = torch.eye(2)
    outputs = {
        "exit_block": torch.tensor(blocks),
        "logits": one_hot[answers],
        "full_logits": one_hot[full],
    }
    return StepOutcome(loss=torch.tensor(0.0), outputs=outputs)


def batch(**columns: list[int]) -> dict[str, Any]:
    return {name: torch.tensor(values) for name, values in columns.items()}


def evaluate(callback: ExitStatistics, run: Run, *, weights: str = "raw") -> None:
    """Two batches, the later rows first."""
    callback.ptrain_evaluation_batch_end(
        run,
        "val",
        weights,
        batch(labels=[1, 1], row=[2, 3], difficulty=[1, 1]),
        outcome([4, 3], answers=[1, 0], full=[1, 1]),
    )
    callback.ptrain_evaluation_batch_end(
        run,
        "val",
        weights,
        batch(labels=[0, 1], row=[0, 1], difficulty=[0, 0]),
        outcome([1, 2], answers=[0, 1], full=[0, 1]),
    )
    callback.ptrain_evaluation_end(run, {})


@pytest.fixture
def callback() -> ExitStatistics:
    return ExitStatistics(ExitStatisticsSettings())


def test_the_file_holds_histograms_by_difficulty_and_every_row(
    callback: ExitStatistics, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    evaluate(callback, run)
    evaluate(callback, run, weights="ema")
    document = json.loads((tmp_path / "exit_statistics.json").read_text())
    assert set(document) == {"val/raw", "val/ema"}
    found = document["val/raw"]
    assert found["rows"] == [1, 2, 4, 3]
    assert found["histogram"] == [1, 1, 1, 1]
    assert found["mean_exit_block"] == 2.5
    assert found["accuracy"] == found["exit_agreement"] == 0.75
    assert found["by_difficulty"]["0"] == {
        "count": 2,
        "accuracy": 1.0,
        "mean_exit_block": 1.5,
        "exit_agreement": 1.0,
        "histogram": [1, 1, 0, 0],
    }
    assert found["by_difficulty"]["1"]["mean_exit_block"] == 3.5


def test_the_file_holds_histograms_by_label_and_by_quarter_of_length(
    callback: ExitStatistics, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.data = SimpleNamespace(label_names=("no", "yes"))
    lengths = torch.tensor([3, 3, 4, 5, 6, 7, 9, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    callback.ptrain_evaluation_batch_end(
        run,
        "val",
        "raw",
        {**batch(labels=[0, 1, 0, 1, 0, 1, 0, -100]), "attention_mask": mask},
        outcome([1, 1, 2, 2, 3, 3, 4, 4], answers=[0] * 8, full=[0] * 8),
    )
    callback.ptrain_evaluation_end(run, {})
    found = json.loads((tmp_path / "exit_statistics.json").read_text())["val/raw"]
    by_label = {name: its["histogram"] for name, its in found["by_label"].items()}
    assert by_label == {"no": [1, 1, 1, 1], "yes": [1, 1, 1, 0]}
    assert found["by_label"]["yes"]["accuracy"] == 0.0
    by_length = {name: its["histogram"] for name, its in found["by_length"].items()}
    assert by_length == {
        "3": [2, 0, 0, 0],
        "4-5": [0, 2, 0, 0],
        "6-7": [0, 0, 2, 0],
        "9": [0, 0, 0, 2],
    }


def test_a_length_at_an_edge_is_in_the_quarter_below() -> None:
    lengths = torch.tensor([3, 3, 3, 4, 5, 6, 7, 8, 9, -1])
    groups = by_length(lengths)
    assert {name: int(rows.sum()) for name, rows in groups.items()} == {
        "3": 3,
        "4-5": 2,
        "6-7": 2,
        "8-9": 2,
    }
    assert list(by_length(torch.tensor([4, 4, 4]))) == ["4"]


def test_rows_whose_batches_have_no_tokens_are_in_no_quarter(
    callback: ExitStatistics, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    evaluate(callback, run)
    found = json.loads((tmp_path / "exit_statistics.json").read_text())["val/raw"]
    assert found["by_length"] == {}
    assert set(found["by_label"]) == {"0", "1"}


def report(blocks: list[int], *, learns_halting: bool) -> list[str]:
    """What a run ends with whose rows left there."""
    run = Run(None)
    run.model.learns_halting = learns_halting
    callback = ExitStatistics(ExitStatisticsSettings())
    answers = [1] * len(blocks)
    callback.ptrain_evaluation_batch_end(
        run, "val", "raw", batch(labels=answers), outcome(blocks, answers=answers, full=answers)
    )
    callback.ptrain_evaluation_end(run, {})
    callback.ptrain_run_end(run, None)
    lines = run.reports["exits by difficulty"].splitlines()
    assert all(len(line) <= 80 for line in lines)
    return lines[2:]


@pytest.mark.parametrize(("block", "what"), [(2, "block 2"), (4, "block 4")])
def test_exits_that_have_collapsed_are_told_of(block: int, what: str) -> None:
    warning = " ".join(report([block] * 97 + [3] * 3, learns_halting=True))
    assert warning.startswith(f"warning: 97 % of rows leave at {what}: the exits have collapsed;")
    assert report([block] * 95 + [3] * 5, learns_halting=True) == []


def test_full_depth_is_no_collapse_where_no_rule_decides() -> None:
    assert report([4] * 100, learns_halting=False) == []
    assert report([4] * 100, learns_halting=True) != []
    assert report([3] * 100, learns_halting=False) != []


def test_a_later_evaluation_replaces_the_one_before(
    callback: ExitStatistics, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    evaluate(callback, run)
    evaluate(callback, run)
    document = json.loads((tmp_path / "exit_statistics.json").read_text())
    assert document["val/raw"]["count"] == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "exit_statistics.json"]


def test_the_table_has_a_line_per_difficulty_and_fits_the_terminal(
    callback: ExitStatistics,
) -> None:
    run = Run(None)
    evaluate(callback, run)
    callback.ptrain_run_end(run, None)
    lines = run.reports["exits by difficulty"].splitlines()
    assert lines == [
        "difficulty   count accuracy mean exit     1     2     3     4",
        "         0       2    1.000      1.50   50%   50%     .     .",
        "         1       2    0.500      3.50     .     .   50%   50%",
        "       all       4    0.750      2.50   25%   25%   25%   25%",
    ]


def meet(rank: int, folder: Path) -> None:
    """Evaluate three batches of rows without a number, taken in turns with another process."""
    method = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    run = Run(folder / str(rank), world=World(rank, 2, rank))
    run.folder.mkdir()
    callback = ExitStatistics(ExitStatisticsSettings())
    for number in range(rank, 3, 2):
        blocks = [number + 1, 4][: 2 - number // 2]
        answers = [1] * len(blocks)
        callback.ptrain_evaluation_batch_end(
            run, "val", "raw", batch(labels=answers), outcome(blocks, answers=answers, full=answers)
        )
    if rank == 0:  # another split, of which the second process has seen no batch
        callback.ptrain_evaluation_batch_end(
            run, "test", "raw", batch(labels=[1]), outcome([2], answers=[1], full=[1])
        )
    callback.ptrain_evaluation_end(run, {})
    (run.folder / "known.json").write_text(json.dumps(callback.document()))
    dist.destroy_process_group()


def test_two_processes_know_the_rows_of_both_and_one_writes(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, pathlib as p, sys; "
        "spec = u.spec_from_file_location('checks', sys.argv[1]); "
        "checks = u.module_from_spec(spec); spec.loader.exec_module(checks); "
        "checks.meet(int(sys.argv[2]), p.Path(sys.argv[3]))"
    )
    processes = [
        forkserver.Popen([sys.executable, "-c", code, __file__, str(rank), tmp_path])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{n}/known.json").read_text()) for n in range(2))
    assert first == second
    assert first["val/raw"]["rows"] == [1, 4, 2, 4, 3]
    assert first["test/raw"]["rows"] == [2]
    assert json.loads((tmp_path / "0/exit_statistics.json").read_text()) == first
    assert not (tmp_path / "1/exit_statistics.json").exists()


@pytest.mark.parametrize("num_blocks", [1, 6, 12, 24, 48])
def test_any_number_of_blocks_fits_80_columns(callback: ExitStatistics, num_blocks: int) -> None:
    run = Run(None, num_blocks=num_blocks)
    blocks = [1, num_blocks]
    callback.ptrain_evaluation_batch_end(
        run, "val", "raw", batch(labels=[0, 1]), outcome(blocks, answers=[0, 1], full=[0, 1])
    )
    callback.ptrain_evaluation_end(run, {})
    callback.ptrain_run_end(run, None)
    lines = run.reports["exits by difficulty"].splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split()[0] == "all"


def test_without_an_evaluation_there_is_no_table(callback: ExitStatistics, tmp_path: Path) -> None:
    run = Run(tmp_path)
    callback.ptrain_evaluation_end(run, {})
    callback.ptrain_run_end(run, None)
    assert run.reports == {}
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_exits_is_let_alone(callback: ExitStatistics, tmp_path: Path) -> None:
    run = Run(tmp_path)
    plain = StepOutcome(loss=torch.tensor(0.0), outputs={"logits": torch.eye(2)})
    callback.ptrain_evaluation_batch_end(run, "val", "raw", batch(labels=[0, 1]), plain)
    callback.ptrain_evaluation_end(run, {})
    callback.ptrain_run_end(run, None)
    assert run.reports == {}


def test_no_hook_of_a_training_step_is_implemented(callback: ExitStatistics) -> None:
    hooks = {name for name in dir(callback) if name.startswith("ptrain_")}
    assert hooks == {
        "ptrain_evaluation_batch_end",
        "ptrain_evaluation_end",
        "ptrain_run_end",
    }
