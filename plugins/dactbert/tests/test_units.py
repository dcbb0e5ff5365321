"""The units: the depth with which training begins."""

from __future__ import annotations

import pytest
import torch
from ptrain_dactbert.units import halting_bias, mean_depth

from plugin_trainer.ops import halting_loss


def test_mean_depth_is_the_one_of_the_exit_weights() -> None:
    halting_N1 = torch.logit(torch.full((5, 1), 0.7))
    weights_N1 = halting_loss(torch.zeros(5, 1, 2), halting_N1, torch.zeros(1).long(), tau=0.0)
    blocks_N1 = torch.arange(1.0, 6.0).unsqueeze(-1)
    expected = (weights_N1.exit_weights * blocks_N1).sum().item()
    assert mean_depth(0.7, num_blocks=5) == pytest.approx(expected, abs=1e-5)


def test_mean_depth_goes_from_the_first_block_to_the_last() -> None:
    assert mean_depth(0.0, num_blocks=12) == 1.0
    assert mean_depth(1.0, num_blocks=12) == 12.0
    # known values: sigmoid(0) and sigmoid(4) with 12 blocks
    assert mean_depth(0.5, num_blocks=12) == pytest.approx(2.60, abs=0.01)
    assert mean_depth(0.98201, num_blocks=12) == pytest.approx(11.78, abs=0.01)


@pytest.mark.parametrize("num_blocks", [2, 6, 12])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_halting_bias_gives_the_depth_asked_for(num_blocks: int, share: float) -> None:
    depth = 1 + share * (num_blocks - 1)
    bias = torch.tensor(halting_bias(depth, num_blocks=num_blocks), dtype=torch.float64)
    found = mean_depth(torch.sigmoid(bias).item(), num_blocks=num_blocks)
    assert found == pytest.approx(depth, abs=1e-3)


def test_without_a_depth_training_begins_near_the_last_block() -> None:
    assert halting_bias(None, num_blocks=6) == 4.0
