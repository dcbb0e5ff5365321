"""Find the boldest exit level that keeps a promised disagreement, by an exact binomial test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from plugin_trainer.early_exit.agreement import at_block, first_exit
from plugin_trainer.errors import PtrainError

# N blocks, B rows, sentences among them, C classes

LEVELS = tuple(9 - step / 8 for step in range(81))
"""The levels that are tried, the safest first: log-odds from 9 (0.01 %) to -1."""


@dataclass(frozen=True)
class Certified:
    """A level at which at most `max_disagreement` of new rows disagree, with that confidence.

    rows         how many rows it was tested on
    disagreeing  how many of them disagree with full depth at that level
    mean_block   after which they leave in the mean
    exits        how many of them leave after each block
    """

    level: float
    max_disagreement: float
    confidence: float
    rows: int
    disagreeing: int
    mean_block: float
    exits: tuple[int, ...] = ()


def certify(
    differs_NB: Tensor, scores_NB: Tensor, *, max_disagreement: float, confidence: float = 0.95
) -> Certified:
    """Test the levels in a fixed sequence from the safest one down, until one fails.

    Because the sequence is fixed and ends at the first failure, every level before it holds with
    the whole confidence (Angelopoulos et al., "Learn then Test", arXiv 2110.01052, section 4). The
    p-value of a level is exact: P(Binomial(rows, max_disagreement) <= disagreeing). It supposes
    that new rows come from where these did, and is exact if the scores were fitted on other rows.

    differs_NB  whether a block's answer of a row is not that of full depth

    Raises PtrainError if the rows are too few to promise that, or if the safest level fails.
    """
    rows = differs_NB.shape[1]
    needed = rows_needed(max_disagreement, confidence)
    if rows < needed:
        raise PtrainError(
            f"too few rows: {needed} are needed to promise at most {max_disagreement:.2%} "
            f"disagreement with {confidence:.0%} confidence, got {rows}",
            hint="give more rows (they need no labels), or promise less",
        )
    found: Certified | None = None
    for level in LEVELS:
        block_B = first_exit(scores_NB, level)
        disagreeing = int(at_block(differs_NB, block_B).sum())
        if binomial_cdf(disagreeing, rows, max_disagreement) > 1 - confidence:
            break
        mean_block = float(block_B.double().mean())
        exits = tuple(block_B.bincount(minlength=len(scores_NB) + 1)[1:].tolist())
        found = Certified(level, max_disagreement, confidence, rows, disagreeing, mean_block, exits)
    if found is None:
        raise PtrainError(
            f"no level keeps the disagreement at or below {max_disagreement:.2%}: "
            f"{disagreeing} of {rows} rows disagree with full depth at the safest one",
            hint="promise less, or train longer: the earlier blocks do not know their errors yet",
        )
    return found


def rows_needed(max_disagreement: float, confidence: float) -> int:
    """How many rows it takes to promise that if not one of them disagrees."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_disagreement))


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(X <= successes) of a binomial distribution, as a sum of its terms."""
    log_p, log_q = math.log(probability), math.log1p(-probability)
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * log_p
        + (trials - k) * log_q
        for k in range(successes + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
