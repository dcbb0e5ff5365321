"""After every block a unit answers, and says how likely later blocks are to change the answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plugin_trainer.data.texts.encoders import pool_tokens

# N blocks, B rows, T tokens, H width of a block, U width of a unit, C classes

DEFAULT_HALTING_BIAS = 4.0
"""sigmoid(4) = 0.982: training begins near full depth, where a fine-tuned encoder is at home."""


class AttentionPooling(nn.Module):  # type: ignore[misc]
    """One learned query over the tokens of a text; at first every token weighs the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """One state a text, [B, H]."""
        scores_BT = self.query(states_BTH).squeeze(-1)
        lowest = torch.finfo(scores_BT.dtype).min
        weights_BT = scores_BT.masked_fill(mask_BT == 0, lowest).softmax(-1)
        return torch.bmm(weights_BT.unsqueeze(1), states_BTH).squeeze(1)


class HaltingUnit(nn.Module):  # type: ignore[misc]
    """A trunk and two heads: the class logits z_n, and the halting logit u_n.

    h_n = sigmoid(u_n) near 1 means: go on, a later block may change the answer.

    pooling       "mean", "cls" or "attention"
    halting_bias  None: a unit that learns no halting logits
    """

    def __init__(
        self,
        width: int,
        *,
        unit_size: int,
        num_labels: int,
        dropout: float,
        pooling: str,
        halting_bias: float | None,
        halting_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.attention = AttentionPooling(width) if pooling == "attention" else None
        self.trunk = nn.Linear(width, unit_size)
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(unit_size, num_labels)
        self.halting: nn.Linear | None = None
        self.halting_gain = halting_gain
        if halting_bias is not None:
            self.halting = nn.Linear(unit_size, 1)
            # With no weights yet, every input begins at the depth that the bias alone decides.
            nn.init.zeros_(self.halting.weight)
            nn.init.constant_(self.halting.bias, halting_bias / halting_gain)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class logits [B, C], and the halting logits [B] if the unit learns them."""
        if self.attention is not None:
            pooled_BH = self.attention(states_BTH, mask_BT)
        else:
            pooled_BH = pool_tokens(states_BTH, mask_BT=mask_BT, pooling=self.pooling)
        trunk_BU = self.dropout(torch.tanh(self.trunk(self.dropout(pooled_BH))))
        if self.halting is None:
            return self.answer(trunk_BU), None
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
