"""A number may be as far from the last block's as the tolerance; then its row may leave."""

from __future__ import annotations

import math

import pytest
import torch

from plugin_trainer.early_exit.agreement import CERTAIN, first_exit
from plugin_trainer.early_exit.fitting import BlockAnswers, fit, join
from plugin_trainer.early_exit.inference import replay
from plugin_trainer.early_exit.tolerance import (
    ToleranceLevel,
    ToleranceMap,
    fit_tolerance,
    is_outside,
)
from plugin_trainer.errors import PtrainError

# N blocks, B rows


def numbers(rows: int, *, seed: int = 0):
    """[N, B]: rows whose numbers settle after one of the blocks, and wander before."""
    generator = torch.Generator().manual_seed(seed)
    settles_B = torch.randint(1, 6, (rows,), generator=generator)
    noise_NB = torch.randn(6, rows, generator=generator)
    wanders_NB = torch.arange(1, 7)[:, None] < settles_B
    return torch.rand(rows, generator=generator) + noise_NB * torch.where(wanders_NB, 0.5, 0.02)


def test_the_score_falls_with_the_change_since_the_block_before():
    fitted = ToleranceMap((0.5, 3.0), (0.0, 10.0), 0.1)
    values_NB = torch.tensor([[1.0, 1.0], [1.0, 1.3], [2.0, 2.0]])
    expected = [[0.5, 0.5], [3.0, 3.0 - 10 * 0.3], [CERTAIN, CERTAIN]]
    assert torch.allclose(fitted.scores(values_NB), torch.tensor(expected).double(), atol=1e-5)


def test_the_score_is_an_estimate_of_the_log_odds_of_being_near():
    fitted = fit_tolerance(numbers(5000, seed=1), 0.2)
    assert fitted.slopes[0] == 0.0
    assert min(fitted.slopes[1:]) > 0
    new_NB = numbers(20000, seed=2)
    scores_NB, near_NB = fitted.scores(new_NB)[:-1], ~is_outside(new_NB, 0.2)[:-1]
    for low, high in [(-1.0, 0.0), (0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]:
        chosen_NB = (scores_NB >= low) & (scores_NB < high)
        rate = near_NB[chosen_NB].double().mean().item()
        assert 1 / (1 + math.exp(-low)) - 0.12 < rate < 1 / (1 + math.exp(-high)) + 0.12


def test_a_row_leaves_where_its_score_reaches_the_level_with_the_number_of_that_block():
    values_NB = numbers(500)
    fitted = fit_tolerance(values_NB, 0.2)
    exits, full_B = replay(ToleranceLevel(fitted, 2.0), values_NB)
    assert torch.equal(exits.block_B, first_exit(fitted.scores(values_NB), 2.0))
    assert torch.equal(exits.answer_BC, values_NB[exits.block_B - 1, torch.arange(500)])
    assert torch.equal(full_B, values_NB[-1])
    assert len(exits.block_B.unique()) > 2


def test_a_row_is_decided_alone():
    """The numbers of the block before are those of the same row, whichever rows have left."""
    values_NB = numbers(60)
    rule = ToleranceLevel(fit_tolerance(values_NB, 0.2), 2.0)
    expected, _ = replay(rule, values_NB)
    decide = rule.decider(num_blocks=6, num_rows=60)
    rows_R = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    block_B = torch.full((60,), 6)
    for block in range(1, 6):
        _, leaves_R = decide(block, rows_R, values_NB[block - 1, rows_R], None)
        block_B[rows_R[leaves_R]] = block
        rows_R = rows_R[~leaves_R]
    assert torch.equal(block_B, expected.block_B)


def test_rows_outside_of_the_tolerance_are_what_a_promise_counts():
    values_NB = numbers(2000)
    answers = join([BlockAnswers(part_NB, None, 0.2) for part_NB in values_NB.split(700, 1)])
    calibration, refused = fit(answers, precision="fp32", rows_sha256="", promises=(0.05, 0.1))
    assert not refused
    assert calibration.agreement_map == fit_tolerance(values_NB, 0.2)
    for item in calibration.certified:
        block_B = first_exit(calibration.agreement_map.scores(values_NB), item.level)
        at_exit_B = values_NB[block_B - 1, torch.arange(2000)]
        assert item.disagreeing == int(((at_exit_B - values_NB[-1]).abs() > 0.2).sum())
        assert item.mean_block < 6


def test_numbers_that_are_none_are_refused():
    with pytest.raises(PtrainError, match="are not finite"):
        fit_tolerance(torch.full((3, 4), torch.nan), 0.1)
