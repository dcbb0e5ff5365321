"""Several processes evaluate together: what comes of it is what one process finds, in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver

pytestmark = pytest.mark.process

CHECKS = Path(__file__).with_name("evaluation_checks.py")

BATCHES = {
    "uneven last batch": 7,
    "fewer batches than processes": 1,
    "limited": 4,
    "data set": 4,
    "shuffled": 7,
    "iterable": 5,
    "tasks": 6,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the number of processes, what each of them found."""
    folder = tmp_path_factory.mktemp("together")
    files = [folder / f"{rank}.json" for rank in range(3)]
    processes = [
        forkserver.Popen(
            [sys.executable, CHECKS, str(rank), folder / "meeting", file],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
    told = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {size: [its[str(size)] for its in told if str(size) in its] for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("scenario", BATCHES)
def test_the_values_are_those_of_one_process_and_the_same_in_each(found, scenario, size):
    alone = found[1][0]["evaluated"][scenario]["values"]
    together = [its["evaluated"][scenario]["values"] for its in found[size]]
    assert len(together) == size
    assert all(its == together[0] for its in together)  # to the bit
    assert together[0].keys() == alone.keys()
    for name, value in together[0].items():
        expected = float.fromhex(alone[name])
        assert float.fromhex(value) == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)
        if name.endswith("in_order"):
            assert value == alone[name]
    assert sum(name.endswith("auroc") for name in alone) == (2 if scenario == "tasks" else 1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("scenario", BATCHES)
def test_each_batch_counts_once_and_all_go_through_the_model_as_often(found, scenario, size):
    evaluated = [its["evaluated"][scenario] for its in found[size]]
    assert sum(its["told"] for its in evaluated) == BATCHES[scenario]
    assert found[1][0]["evaluated"][scenario]["told"] == BATCHES[scenario]
    rounds = -(-BATCHES[scenario] // size) if scenario != "tasks" else -(-5 // size) + 1
    assert [its["passes"] for its in evaluated] == [rounds] * size


def test_only_a_share_is_loaded_where_the_order_is_known(found):
    loaded = [its["evaluated"]["uneven last batch"]["loaded"] for its in found[2]]
    assert loaded == [14, 14]  # 4 + 4 + 4 + 2, and 4 + 4 + 4 with a stand-in of 2
    assert found[1][0]["evaluated"]["uneven last batch"]["loaded"] == 26


@pytest.mark.parametrize("size", [2, 3])
def test_a_metric_that_cannot_be_merged_is_named_before_the_first_step(found, size):
    for its in found[size]:
        said = its["rehearsed"]
        refused = {name: text for name, text in said.items() if text}
        assert refused.keys() == {"beside", "unreduced"}
        assert "the metric 'beside' cannot be merged over several processes: " in said["beside"]
        assert "it would be 0 in place of" in said["beside"]
        assert "a tensor of (2,) in place of" in said["unreduced"]
        assert "add_state" in said["unreduced"]


@pytest.mark.parametrize("size", [2, 3])
def test_log_lines_are_about_all_processes(found, size):
    alone, *_ = [its["logged"] for its in found[1]]
    together = [its["logged"] for its in found[size]]
    assert all(its == together[0] for its in together)
    for part in ("meter", "again", "tasks", "speed"):
        assert together[0][part] == pytest.approx(alone[part], rel=1e-6)
    assert together[0]["speed"] == {"samples_per_second": 14.0, "tokens_per_second": 28.0}
    assert together[0]["tasks"]["often/samples"] == 22
    assert together[0]["tasks"]["once/grad_norm_share"] == pytest.approx(6 / 28)
    assert together[0]["meter"]["late"] == 4
    assert together[0]["nothing"] == together[0]["speed_in_no_time"] == {}
