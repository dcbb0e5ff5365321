"""Logits of a model whose blocks know more and more."""

from __future__ import annotations

import pytest
import torch

# N blocks, B rows, C classes


@pytest.fixture
def logits():
    """Makes logits [N, B, C]: every block sees the same truth through less and less noise."""

    def make(rows: int = 1000, *, blocks: int = 6, classes: int = 2, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        labels_B = torch.randint(classes, (rows,), generator=generator)
        clear_B = torch.rand(rows, generator=generator) * 6
        truth_BC = torch.nn.functional.one_hot(labels_B, classes) * clear_B[:, None]
        noise_NBC = torch.randn(blocks, rows, classes, generator=generator)
        scale_N = torch.linspace(2.0, 0.2, blocks)
        return truth_BC + scale_N[:, None, None] * noise_NBC

    return make
