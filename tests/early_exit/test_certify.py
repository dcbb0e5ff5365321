"""A promise is kept: the binomial test is exact, and broken no more often than it says."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import comb

import pytest
import torch

from plugin_trainer.early_exit.agreement import (
    at_block,
    differs_from_last,
    first_exit,
    fit_agreement,
)
from plugin_trainer.early_exit.certify import LEVELS, binomial_cdf, certify, rows_needed
from plugin_trainer.errors import PtrainError

# N blocks, B rows, C classes


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 299), (3, 871), (38, 5000), (50, 50)])
@pytest.mark.parametrize("p", [Fraction(1, 200), Fraction(1, 100), Fraction(1, 2)])
def test_the_binomial_distribution_is_exact(k, n, p):
    exact = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_cdf(k, n, float(p)) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("max_disagreement", "rows"), [(0.005, 598), (0.01, 299), (0.02, 149), (0.05, 59)]
)
def test_so_many_rows_are_needed_at_95_percent(max_disagreement, rows):
    assert rows_needed(max_disagreement, 0.95) == rows
    assert binomial_cdf(0, rows, max_disagreement) <= 0.05
    assert binomial_cdf(0, rows - 1, max_disagreement) > 0.05


def test_the_boldest_level_that_holds_is_found(logits):
    logits_NBC = logits(2000)
    scores_NB = fit_agreement(logits_NBC).scores(logits_NBC)
    differs_NB = differs_from_last(logits_NBC)
    found = certify(differs_NB, scores_NB, max_disagreement=0.02)
    wrong = {
        level: int(at_block(differs_from_last(logits_NBC), first_exit(scores_NB, level)).sum())
        for level in LEVELS
    }
    # Of 2,000 rows 29 may disagree where 2 % are promised with 95 % confidence.
    assert wrong[found.level] == found.disagreeing <= 29
    failing = [level for level in LEVELS if wrong[level] > 29]
    assert found.level == max(failing) + 1 / 8
    assert (found.rows, found.max_disagreement, found.confidence) == (2000, 0.02, 0.95)
    assert 1 < found.mean_block < 6


def test_a_promise_is_broken_no_more_often_than_it_says(logits):
    """Fitted on other rows; 200 draws of 400 rows, of which 5 % may break it."""
    agreement_map = fit_agreement(logits(3000, seed=1))
    everything_NBC = logits(60000, seed=2)
    scores_NB = agreement_map.scores(everything_NBC)
    differs_NB = differs_from_last(everything_NBC)
    generator = torch.Generator().manual_seed(0)

    @cache  # of few levels
    def rate(level):
        return at_block(differs_NB, first_exit(scores_NB, level)).double().mean()

    broken = 0
    for _ in range(200):
        some_B = torch.randint(60000, (400,), generator=generator)
        level = certify(differs_NB[:, some_B], scores_NB[:, some_B], max_disagreement=0.05).level
        broken += bool(rate(level) > 0.05)
    assert broken <= 18  # 10 are expected at most; P(Binomial(200, 0.05) > 18) = 0.6 %


def test_too_few_rows_are_told_apart_from_a_promise_that_fails(logits):
    logits_NBC = logits(298)
    scores_NB = fit_agreement(logits_NBC).scores(logits_NBC)
    with pytest.raises(PtrainError, match=r"too few rows: 299 are needed .* 1.00% .* got 298"):
        certify(differs_from_last(logits_NBC), scores_NB, max_disagreement=0.01)
    sure_NB = torch.full_like(scores_NB, 50.0)
    with pytest.raises(PtrainError, match=r"no level keeps the disagreement at or below 5.00%"):
        certify(differs_from_last(logits_NBC), sure_NB, max_disagreement=0.05)


def test_the_sequence_ends_at_the_first_level_that_fails():
    """A bolder level may look well again, by luck: nothing behind a failure is certified."""
    rows, troubled = 400, 30
    logits_NBC = torch.zeros(3, rows, 2)
    logits_NBC[:, ::2, 0] = logits_NBC[:, 1::2, 1] = 1.0
    logits_NBC[1, :troubled] = logits_NBC[1, :troubled].flip(-1)
    scores_NB = torch.full((3, rows), 50.0)
    scores_NB[0, :troubled], scores_NB[1, :troubled] = 3.0, 5.0
    # From 5 down to 3 the troubled rows leave after block 2, wrong; at 3 after block 1, right.
    assert (
        int(at_block(differs_from_last(logits_NBC), first_exit(scores_NB, 5.0)).sum()) == troubled
    )
    assert int(at_block(differs_from_last(logits_NBC), first_exit(scores_NB, 3.0)).sum()) == 0
    found = certify(differs_from_last(logits_NBC), scores_NB, max_disagreement=0.05)
    assert (found.level, found.disagreeing) == (5.125, 0)
