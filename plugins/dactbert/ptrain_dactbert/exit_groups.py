"""Rows in groups by label and by length: a rule may leave some early and others never."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# R rows of a split


def by_label(labels_R: Tensor, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Which rows have each label, by its name, or by its number where it has none."""
    numbers = [number for number in labels_R.unique().tolist() if number >= 0]
    return {
        names[number] if number < len(names) else str(number): labels_R == number
        for number in numbers
    }


def by_length(lengths_R: Tensor) -> dict[str, Tensor]:
    """Which rows are in each quarter by length, by the lengths in it: "3-9" tokens.

    Rows of one length are in one quarter, so that quarters differ in size and some may be missing.
    A length below 1 is an unknown one and in none.
    """
    known_R = lengths_R[lengths_R > 0].double()
    if not len(known_R):
        return {}
    edges_Q = known_R.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    # A length that is an edge belongs to the quarter below it.
    quarter_R = (lengths_R.double()[:, None] > edges_Q).sum(-1)
    quarter_R[lengths_R <= 0] = -1
    quarters = [quarter for quarter in quarter_R.unique().tolist() if quarter >= 0]
    groups = [quarter_R == quarter for quarter in quarters]
    return {_range(lengths_R[group_R]): group_R for group_R in groups}


def _range(lengths_R: Tensor) -> str:
    shortest, longest = int(lengths_R.min()), int(lengths_R.max())
    return str(shortest) if shortest == longest else f"{shortest}-{longest}"
