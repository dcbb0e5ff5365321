"""After every block a unit answers, and says how likely later blocks are to change the answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# N blocks, B rows, T tokens, H width of a block, U width of a unit, C classes

DEFAULT_HALTING_BIAS = 4.0
"""sigmoid(4) = 0.982: training begins near full depth, where a fine-tuned encoder is at home."""


class HaltingUnit(nn.Module):  # type: ignore[misc]
    """A trunk and two heads: the class logits z_n, and the halting logit u_n.

    h_n = sigmoid(u_n) near 1 means: go on, a later block may change the answer.
    """

    def __init__(
        self,
        width: int,
        *,
        unit_size: int,
        num_labels: int,
        dropout: float,
        halting_bias: float,
        halting_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.trunk = nn.Linear(width, unit_size)
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(unit_size, num_labels)
        self.halting = nn.Linear(unit_size, 1)
        # With no weights yet, every input begins at the depth that the bias alone decides.
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, halting_bias / halting_gain)
        self.halting_gain = halting_gain

    def forward(self, pooled_BH: Tensor) -> tuple[Tensor, Tensor]:
        """The class logits [B, C] and the halting logits [B]."""
        trunk_BU = self.dropout(torch.tanh(self.trunk(self.dropout(pooled_BH))))
        return self.answer(trunk_BU), self.halting_gain * self.halting(trunk_BU).squeeze(-1)


def mean_depth(halting: float, *, num_blocks: int) -> float:
    """The mean block that answers, sum n w_n, if every unit's h is `halting`."""
    depth, continues = 0.0, 1.0
    for block in range(1, num_blocks + 1):
        # The running form of a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}, with y_n = n.
        depth = continues * block + (1.0 - continues) * depth
        continues *= halting
    return depth


def halting_bias(initial_depth: float | None, *, num_blocks: int) -> float:
    """The bias of the halting heads with which training begins at a mean depth, by bisection."""
    if initial_depth is None:
        return DEFAULT_HALTING_BIAS
    low, high = -16.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        if mean_depth(1 / (1 + math.exp(-middle)), num_blocks=num_blocks) < initial_depth:
            low = middle
        else:
            high = middle
    return (low + high) / 2
