"""What happens to one process, and to the others: kills, signals and failures, with real ones."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from plugin_trainer.run_folder import RunFolder
from plugin_trainer.training.checkpointing.store import CheckpointStore
from tests import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.process]

HERE = Path(__file__).parent
STEPS = 24


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The run to which nothing happens, each made once."""
    made: dict[tuple, Path] = {}

    def run(processes: int, **settings) -> Path:
        key = (processes, *sorted(settings.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            done = train(made[key], processes=processes, **settings)
            assert done.returncode == 0, done.stderr[-3000:]
        return made[key]

    return run


def status_of(run: Path) -> dict:
    return RunFolder(run).read_about()


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp2")])
def test_a_killed_process_is_started_again_and_the_run_ends_bit_for_bit_as_if_it_never_was(
    processes, strategy, whole, train, bits_of, tmp_path
):
    chosen = {"processes": processes, "parallel__strategy": strategy}
    fault = {"rank": 1, "step": 10, "at": "step_end", "do": "kill", "once": str(tmp_path / "once")}
    done = train(tmp_path / "run", restarts=1, fault=fault, **chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "once").exists()
    assert "going on from" in done.stderr and "not exact" not in done.stderr
    assert status_of(tmp_path / "run")["resumed"] == [8]
    assert bits_of(tmp_path / "run") == bits_of(whole(**chosen))


def test_a_signal_to_one_process_stops_all_at_one_step_with_a_checkpoint(
    whole, train, bits_of, tmp_path
):
    fault = {"rank": 1, "step": 5, "at": "step_end", "do": "term"}
    train(tmp_path / "run", fault=fault)
    assert status_of(tmp_path / "run")["status"] == "interrupted"
    assert CheckpointStore(tmp_path / "run").find("last").step == 6  # told in the next step
    done = train(tmp_path / "run", "--resume", "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert bits_of(tmp_path / "run") == bits_of(whole(2, parallel__strategy="ddp"))


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def failures(request, together, tmp_path_factory) -> tuple[Path, list[dict[str, Any]], str]:
    """What each of two processes met in the runs of faulty.py, one run after the other."""
    folder = tmp_path_factory.mktemp("faulty")
    done = together(HERE / "faulty.py", folder, request.param, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return folder, reports, done.stderr


@pytest.mark.parametrize(
    ("case", "step"),
    [
        ("1 step 5", 5),
        ("1 step_end 6", 6),
        ("0 step_end 6", 6),
        ("1 evaluation 8", 8),
        ("1 save 8", 8),
        ("0 log 6", 6),
        ("0 run_start 0", 0),
    ],
)
def test_what_fails_in_one_process_stops_all_at_one_step_with_a_checkpoint(case, step, failures):
    folder, reports, output = failures
    if case not in reports[0]:
        pytest.skip("a sharded model cannot be left by one process in the middle of a pass")
    rank = int(case[0])
    fault = f"a fault at {case.split()[1]}"
    for number, report in enumerate(reports):
        told, text = report[case]["error"], report[case]["text"]
        assert fault in text, report[case]
        assert told == ("TrainingFailed" if number == rank else "PeerFailed")
        assert ("process 1: " in text) == (number == 0 and rank == 1)
    about = status_of(folder / case)
    assert about["status"] == "failed" and about["step"] == step
    if step:
        assert CheckpointStore(folder / case).find("last").step == step
        assert f"step-{step:08d} before stopping" in reports[rank][case]["text"]
    assert "terminate called" not in output


def test_a_row_that_one_process_cannot_load_stops_all(failures):
    folder, reports, _ = failures
    texts = [report["poisoned"]["text"] for report in reports]
    assert all("row 17 cannot be read" in text for text in texts), texts
    assert status_of(folder / "poisoned")["status"] == "failed"


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused_before_the_first_step(failures):
    folder, reports, _ = failures
    for report in reports:
        assert "7" in report["uneven"]["text"] and "2 processes" in report["uneven"]["text"]
    assert not (folder / "uneven" / "checkpoints").exists()


def test_what_is_not_finite_is_told_by_all_as_in_one_process(failures):
    folder, reports, _ = failures
    assert {report["not finite"]["error"] for report in reports} == {"NonFiniteError"}
    assert status_of(folder / "not finite")["status"] == "failed"


@pytest.mark.parametrize(("strategy", "at"), [("ddp", "backward"), ("fsdp2", "evaluation")])
def test_what_fails_where_it_cannot_be_said_ends_all_and_is_told(strategy, at, train, tmp_path):
    fault = {"rank": 1, "step": 8, "at": at, "do": "raise"}
    done = train(tmp_path / "run", fault=fault, parallel__strategy=strategy)
    assert done.returncode != 0
    assert done.stderr.count(f"ValueError: a fault at {at}") == 1, done.stderr[-3000:]
    about = status_of(tmp_path / "run")
    assert about["status"] == "failed" and "gone" in about["reason"]
    sound = CheckpointStore(tmp_path / "run").find("last").step
    assert sound == (8 if strategy == "ddp" else 4)


def test_a_mistyped_metric_is_told_once(train, tmp_path):
    done = train(tmp_path / "run", best__watch="val/acuracy", parallel__strategy="fsdp2")
    assert done.stderr.count("did you mean 'val/accuracy'?") == 1, done.stderr[-3000:]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("split", "role", "strategy", "rows"),
    [
        ("train", "training", "ddp", 13),
        ("validation", "validation", "fsdp2", 13),
        ("validation", "validation", "ddp", 4),  # one batch, and none for the second process
    ],
)
def test_data_that_shares_itself_out_would_be_divided_twice(
    split, role, strategy, rows, train, tmp_path
):
    settings = {"data_settings__shared_out": split, "parallel__strategy": strategy}
    settings["data_settings__validation_rows"] = rows
    done = train(tmp_path / "run", length="6 steps", **settings)
    assert done.returncode != 0
    said = f"error: process 1: its {role} data is not that of process 0"
    assert done.stderr.count(said) == 1 and "by RANK" in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_number_of_processes_goes_on_with_the_right_data_and_says_it_is_not_exact(
    train, tmp_path, monkeypatch
):
    loaded = tmp_path / "loaded"
    monkeypatch.setenv("PTRAIN_LOADED", str(loaded))
    fault = {"rank": 1, "step": 9, "at": "step_end", "do": "term"}
    train(tmp_path / "run", processes=3, fault=fault)
    first = loaded.read_text().split()
    loaded.unlink()
    done = train(tmp_path / "run", "--resume", "auto", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming is not exact: machine.processes: 3 -> 2" in done.stderr
    # Three epochs of 44 rows, each row once an epoch; a stand-in and rows loaded ahead are more.
    counts = {str(row): 0 for row in range(44)}
    for row in [*first, *loaded.read_text().split()]:
        counts[row] += 1
    assert all(3 <= count <= 5 for count in counts.values()), counts
    assert status_of(tmp_path / "run")["step"] == STEPS


def test_one_process_goes_on_with_the_sharded_run_of_two(whole, tmp_path):
    run = shutil.copytree(whole(2, parallel__strategy="fsdp2"), tmp_path / "run")
    command = ["run", "--resume", run, "--set", "length=26 steps", "--allow", "length"]
    done = forkserver.run(
        [sys.executable, "-m", "plugin_trainer", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resuming is not exact: machine.processes: 2 -> 1" in done.stderr
    assert "code" not in done.stderr
    assert status_of(run)["step"] == 26
