"""A step exchanges its gradients and nothing else: what else there is to tell travels with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]

BLOCKS = 3


@pytest.fixture(scope="module")
def counts(together, tmp_path_factory) -> dict[str, dict[str, float]]:
    """By strategy, how often each collective is made in a step of two processes."""
    folder = tmp_path_factory.mktemp("counting")
    script = Path(__file__).with_name("counting.py")
    done = together(script, folder / "counts.json", processes=2, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "counts.json").read_text())


@pytest.mark.parametrize("run", ["ddp", "ddp, accumulated"])
def test_replicas_make_one_exchange_a_step(run, counts):
    assert counts[run] == {"gloo:all_reduce": 1}


def test_shards_gather_and_reduce_each_block_and_make_one_small_exchange(counts):
    # On a CPU the reduction of a block's gradients counts as one, and the norm takes one more.
    assert counts["fsdp2"] == {"gloo:all_gather": 2 * BLOCKS, "gloo:all_reduce": BLOCKS + 1}
