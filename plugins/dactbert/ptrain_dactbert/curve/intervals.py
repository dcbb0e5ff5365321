"""How sure a figure is: the intervals that stand beside every accuracy and every difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import Any

from torch import Tensor

# P pairs of runs, R rows of a split

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Interval = tuple[float, float]


def wilson(mean: float, rows: int) -> Interval:
    """The interval of one model's rate on so many rows (Wilson 1927): never empty, never past 1."""
    centre = (mean + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = math.sqrt(mean * (1 - mean) / rows + (_Z / (2 * rows)) ** 2) * _Z / (1 + _Z**2 / rows)
    return centre - half, centre + half


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and greatest over the seeds."""
    return {"mean": fmean(values), "min": min(values), "max": max(values)}


def paired(differences_PR: Tensor) -> dict[str, Any]:
    """The mean difference of two models on the same rows, and its interval.

    Rows are the sample: the differences of a row are averaged over the seeds first, for they are
    not independent. The interval is for these seeds; how far seeds lie apart is listed beside it.
    """
    by_row_R = differences_PR.double().mean(0)
    mean = float(by_row_R.mean())
    half = _Z * float(by_row_R.std()) / math.sqrt(len(by_row_R)) if len(by_row_R) > 1 else math.inf
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "by_seed": differences_PR.double().mean(1).tolist(),
    }
