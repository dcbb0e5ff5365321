"""How a head reads the encoder: a whole text, each of its tokens, or two marked spans in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plugin_trainer.data.texts.encoders import pool_tokens
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.heads import Head

# B texts, T tokens, H width of the encoder, C labels


class Answer(nn.Module):  # type: ignore[misc]
    """Dropout and one linear layer over what the head reads.

    head           what is asked
    num_blocks     of the encoder; a head with exits has a linear layer for each
    class_weights  factor on the loss of each label, [C], or None
    """

    class_weights: Tensor | None

    def __init__(
        self, head: Head, *, width: int, dropout: float, pooling: str, num_blocks: int = 1
    ) -> None:
        super().__init__()
        self.head = head
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        size = 2 * width if head.kind == "relation" else width
        self.linear = nn.Linear(size, head.width)
        self.earlier = nn.ModuleList(
            nn.Linear(size, head.width) for _ in range(num_blocks - 1 if head.exits else 0)
        )
        weights = torch.tensor(head.class_weights) if head.class_weights else None
        # They come from the settings, so a checkpoint need not carry them.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self,
        states_BTH: Tensor,
        *,
        mask_BT: Tensor,
        mark_positions: Tensor | None,
        block: int | None = None,
    ) -> Tensor:
        """The logits: [B, T, C] of tokens, [B] of a regression, else [B, C].

        block  whose states they are, from 1; None: the last one's
        """
        linear = self.linear
        if block is not None and block <= len(self.earlier):
            linear = self.earlier[block - 1]
        logits: Tensor = linear(
            self.dropout(self.read(states_BTH, mask_BT=mask_BT, mark_positions=mark_positions))
        )
        return logits.squeeze(-1) if self.head.kind == "regression" else logits

    def read(self, states_BTH: Tensor, *, mask_BT: Tensor, mark_positions: Tensor | None) -> Tensor:
        """The states [B, T, H] that the head answers from, or one [B, H] or [B, 2H] a text."""
        if self.head.kind == "tokens":
            return states_BTH
        if self.head.kind != "relation":
            return pool_tokens(states_BTH, mask_BT=mask_BT, pooling=self.pooling)
        if mark_positions is None:
            raise DataError(
                f"the batch of the task {self.head.task} has no mark_positions",
                hint="a relation is asked of texts with two marked spans: <e1> </e1> <e2> </e2>",
            )
        return entity_starts(states_BTH, mark_positions)


def entity_starts(states_BTH: Tensor, mark_positions_B2: Tensor) -> Tensor:
    """The states at the two marks <e1> and <e2>, one after the other, [B, 2H].

    The "entity start" of Baldini Soares et al., Matching the Blanks, ACL 2019, section 3.3.
    """
    rows_B1 = torch.arange(len(states_BTH), device=states_BTH.device).unsqueeze(1)
    return states_BTH[rows_B1, mark_positions_B2].flatten(1)
