"""Two and three real processes make the losses, the metrics and the weights that one makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.process]

# What is computed in 16 bits depends in its last digits on how many rows are computed at once.
CASES = {
    "plain": 2e-6,
    "accumulated": 2e-6,
    "sgd": 2e-6,
    "tripled": 2e-6,
    "own_metric": 2e-6,
    "tokens": 2e-6,
    "left_out": 2e-6,
    "tasks": 2e-6,
    "bf16": 3e-2,
    "fp16": 1e-2,
}
STRATEGIES = ("ddp-2", "ddp-3", "fsdp2-2", "fsdp2-3")


def cases_of(several: str) -> list[str]:
    """A sharded model has no loss scale. Whether there are two processes or three matters to how
    rows are shared out, not to what is done with gradients and in what precision.
    """
    left_out = {"fp16"} if several.startswith("fsdp2") else set()
    if several.endswith("3"):
        left_out |= {"sgd", "tripled", "own_metric", "bf16", "fp16"}
    return [name for name in CASES if name not in left_out]


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    runs.make(folder, CASES)
    return folder


@pytest.fixture(scope="module", params=STRATEGIES)
def several(request, together, tmp_path_factory) -> Path:
    strategy, processes = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    names = cases_of(request.param)
    script, count = Path(__file__).with_name("runs.py"), int(processes)
    # Once as torchrun starts it, from nothing, and as Python ends.
    cold = request.param == "ddp-2"
    done = together(script, folder, strategy, *names, processes=count, cold=cold)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_several_processes_log_what_one_does(case, alone, several, log_of):
    if not (several / case).is_dir():
        pytest.skip("left out: see cases_of")
    ours, theirs = log_of(several / case), log_of(alone / case)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    compared = 0
    for line, one in zip(ours, theirs, strict=True):
        told = {name for name in one if name.startswith(("train/", "val", "samples"))}
        told -= {name for name in one if name.endswith("_per_second")}
        for name in told:
            assert line[name] == pytest.approx(one[name], rel=CASES[case], abs=CASES[case]), name
            compared += 1
    assert compared > len(ours)


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_end_with_the_weights_of_one(case, weights, alone, several, weights_of):
    if not (several / case).is_dir():
        pytest.skip("left out: see cases_of")
    ours, theirs = weights_of(several / case, weights), weights_of(alone / case, weights)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=0, atol=10 * CASES[case]), name


def test_a_script_that_calls_fit_lets_go_of_the_others_before_it_ends(several):
    """A process group that is there when the interpreter goes may abort the process."""
    words = {path.name: path.read_text() for path in several.glob("reachable-*")}
    assert len(words) == int(several.name.split("-")[1][0])
    assert set(words.values()) == {"False"}
