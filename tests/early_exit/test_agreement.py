"""The map from margins to log-odds of agreement, against another implementation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plugin_trainer.early_exit.agreement import (
    CERTAIN,
    AgreementMap,
    at_block,
    differs_from_last,
    first_exit,
    fit_agreement,
    margin,
)
from plugin_trainer.errors import PtrainError

# N blocks, B rows, C classes


def newton(margins: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The same regression by Newton's method, in numpy, row by row where it matters."""
    mean, scale = margins.mean(), margins.std(ddof=1) + 1e-6
    x = np.stack([np.ones_like(margins), (margins - mean) / scale], 1)
    w = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - targets) / len(x) + np.array([0, 2e-3 * w[1]])
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + np.diag([0, 2e-3])
        w = w - np.linalg.solve(hessian, gradient)
    return w[0] - w[1] * mean / scale, w[1] / scale


def expected_maps(logits_NBC: np.ndarray) -> list[tuple[float, float]]:
    last_BC = np.exp(2 * (logits_NBC[-1] - logits_NBC[-1].max(-1, keepdims=True)))
    last_BC /= last_BC.sum(-1, keepdims=True)
    maps = []
    for block_BC in logits_NBC[:-1]:
        margins, targets = [], []
        for row, row_C in enumerate(block_BC):
            first, second = sorted(row_C.tolist(), reverse=True)[:2]
            margins.append(first - second)
            targets.append(min(max(last_BC[row, int(row_C.argmax())], 1e-6), 1 - 1e-6))
        maps.append(newton(np.array(margins), np.array(targets)))
    return maps


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_newtons_method(logits, classes, seed):
    logits_NBC = logits(400, classes=classes, seed=seed)
    fitted = fit_agreement(logits_NBC)
    expected = expected_maps(logits_NBC.double().numpy())
    found = list(zip(fitted.intercepts, fitted.slopes, strict=True))
    assert np.allclose(found, expected, rtol=0, atol=2e-5)
    assert fitted.num_blocks == 6


def test_the_score_is_an_estimate_of_the_log_odds_of_agreement(logits):
    """Over 20,000 new rows, rows of a score agree about as often as it says."""
    agreement_map = fit_agreement(logits(5000, seed=1))
    new_NBC = logits(20000, seed=2)
    scores_NB = agreement_map.scores(new_NBC)
    agrees_NB = new_NBC.argmax(-1).eq(new_NBC[-1].argmax(-1))
    for low, high in [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]:
        chosen_NB = (scores_NB[:-1] >= low) & (scores_NB[:-1] < high)
        rate = agrees_NB[:-1][chosen_NB].double().mean().item()
        assert 1 / (1 + math.exp(-low)) - 0.06 < rate < 1 / (1 + math.exp(-high)) + 0.06


def test_a_score_is_that_of_its_row_alone(logits):
    logits_NBC = logits(300)
    agreement_map = fit_agreement(logits_NBC)
    scores_NB = agreement_map.scores(logits_NBC)
    order_B = torch.randperm(300)
    assert torch.equal(agreement_map.scores(logits_NBC[:, order_B]), scores_NB[:, order_B])
    assert torch.equal(agreement_map.score(2, logits_NBC[1, 7:8]), scores_NB[1, 7:8])
    assert (scores_NB[-1] == CERTAIN).all()


def test_a_row_leaves_after_the_first_block_that_reaches_the_level():
    scores_NB = torch.tensor([[0.0, 3.0, 1.0], [2.0, 4.0, 0.0], [CERTAIN] * 3])
    assert first_exit(scores_NB, 2.0).tolist() == [2, 1, 3]
    assert first_exit(scores_NB, -1.0).tolist() == [1, 1, 1]
    assert first_exit(scores_NB, 1e12).tolist() == [3, 3, 3]


def test_disagreement_is_with_the_last_block():
    logits_NBC = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert at_block(differs_from_last(logits_NBC), torch.tensor([1, 1])).tolist() == [False, True]
    assert at_block(differs_from_last(logits_NBC), torch.tensor([2, 2])).tolist() == [False, False]


def test_a_block_whose_margin_misleads_keeps_its_rate_alone():
    """The larger its margin, the more often the first block is wrong."""
    rows = 200
    margin_B = torch.linspace(0.1, 4, rows)
    first_BC = torch.stack([margin_B, torch.zeros(rows)], -1)
    last_BC = torch.stack([torch.zeros(rows), torch.linspace(-4, 4, rows)], -1)
    fitted = fit_agreement(torch.stack([first_BC, last_BC]))
    assert fitted.slopes == (0.0,)
    assert fitted.intercepts[0] == pytest.approx(0.0, abs=0.05)


def test_rows_that_all_agree_give_finite_numbers():
    logits_BC = torch.tensor([[60.0, 0.0], [0.0, 60.0]]).repeat(50, 1)
    fitted = fit_agreement(torch.stack([logits_BC, logits_BC]))
    assert fitted == AgreementMap(fitted.intercepts, (pytest.approx(0.0, abs=1e-3),))
    assert fitted.score(1, logits_BC).min() > 9


@pytest.mark.parametrize(
    ("logits_NBC", "message"),
    [
        (torch.zeros(1, 4, 2), "two blocks that answer"),
        (torch.zeros(2, 4, 1), "two classes or more"),
        (torch.full((2, 4, 2), torch.nan), "are not finite"),
        (torch.zeros(2, 4, 2), "the last block gives all 4 calibration rows the same class"),
    ],
)
def test_rows_that_say_nothing_are_refused(logits_NBC, message):
    with pytest.raises(PtrainError, match=message):
        fit_agreement(logits_NBC)


def test_a_margin_is_taken_in_float64():
    logits_BC = torch.tensor([[1.0, 3.0, 2.5]], dtype=torch.bfloat16)
    assert margin(logits_BC).tolist() == [0.5]
    assert margin(logits_BC).dtype == torch.float64
