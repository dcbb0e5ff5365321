"""The arguments of an encoder's block, narrowed to some of the rows and to the tokens they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# B rows of the batch, T tokens

Arguments = Mapping[str, Any]
"""What a block is called with beside the states, by the names of its parameters."""

# Those that have one entry a row, in transformers 5. By name: a table of as many positions as the
# batch has rows has the same shape.
_PER_ROW = frozenset(
    {"attention_mask", "position_bias", "position_embeddings", "position_ids", "query_states"}
)


def select_rows(arguments: Arguments, rows: Tensor | slice) -> Arguments:
    """The entries of these rows."""
    return {name: select(name, value, rows) for name, value in arguments.items()}


def select(name: str, value: Any, rows: Tensor | slice) -> Any:
    """The entries of these rows, if the argument of that name has one a row."""
    return _select(value, rows) if name in _PER_ROW else value


def _select(value: Any, rows: Tensor | slice) -> Any:
    if isinstance(value, tuple):
        return tuple(_select(part, rows) for part in value)
    # Masks and position tables that are the same for every row have one entry.
    is_per_row = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] > 1
    return value[rows] if is_per_row else value


def valid_lengths(mask_BT: Tensor) -> list[int]:
    """The position behind the last valid token of each row."""
    ends_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    lengths: list[int] = (mask_BT.ne(0) * ends_T).amax(1).tolist()
    return lengths


def has_only_a_mask(arguments: Arguments) -> bool:
    """Whether the mask is all that knows how many tokens there are."""
    others = (value for name, value in arguments.items() if name != "attention_mask")
    return not any(isinstance(value, (Tensor, tuple)) for value in others)


def trim_tokens(arguments: Arguments, longest: int, *, num_tokens: int) -> Arguments:
    """The mask cut to so many tokens, in each of its dimensions that has one entry a token."""
    mask = arguments.get("attention_mask")
    if mask is None:
        return arguments
    for dim in range(1, mask.dim()):
        if mask.shape[dim] == num_tokens:
            mask = mask.narrow(dim, 0, longest)
    return {**arguments, "attention_mask": mask}
