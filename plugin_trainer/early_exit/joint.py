"""What each block's own answer weighs where all of them are trained together."""

from __future__ import annotations

import torch
from torch import Tensor

# N blocks, B rows


def block_shares(num_blocks: int) -> Tensor:
    """In proportion to the block's number, and 1 in sum: n / sum n, [N]."""
    share_N = torch.arange(1, num_blocks + 1, dtype=torch.float32)
    return share_N / share_N.sum()


def weighted_mean(values_NB: Tensor, share_N: Tensor, *, count: Tensor) -> Tensor:
    """The mean over so many rows of what the blocks have in these proportions."""
    return (values_NB * share_N[:, None]).sum() / count.clamp_min(1)
