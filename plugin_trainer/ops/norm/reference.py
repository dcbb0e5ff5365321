"""The norm in torch's own operations, in double and in pieces of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# torch shares a reduction of 32 Ki elements or more among its threads and then adds up in another
# order. It also converts to double what it reduces: 128 KiB of a piece stay in the cache.
CPU_PIECE_ELEMENTS = 1 << 14


def grad_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of at least one gradient, all on one device, that `ops.grad_norm` has checked."""
    pieces = [piece for gradient in gradients for piece in _pieces(gradient)]
    if not pieces:
        return gradients[0].new_zeros((), dtype=torch.float64)
    norms = torch._foreach_norm(pieces, 2, dtype=torch.float64)
    squares = torch.stack(norms).square_()
    if squares.device.type == "cpu":
        while squares.numel() > CPU_PIECE_ELEMENTS:
            squares = torch.stack([part.sum() for part in squares.split(CPU_PIECE_ELEMENTS)])
    return squares.sum().sqrt()


def _pieces(gradient: Tensor) -> Iterator[Tensor]:
    if gradient.numel() == 0:
        return
    if gradient.device.type != "cpu" or gradient.numel() <= CPU_PIECE_ELEMENTS:
        yield gradient
    else:
        yield from gradient.reshape(-1).split(CPU_PIECE_ELEMENTS)
