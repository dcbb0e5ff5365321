"""Gradients are measured and clipped, sparse ones as the dense ones that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plugin_trainer.training.optim.gradients import scale_to_norm, total_norm


def looked_up(*, sparse):
    """The gradients of an embedding, in which a row is looked up twice, and of a layer on it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, sparse=sparse), nn.Linear(4, 2))
    model(torch.tensor([0, 3, 0])).square().sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("alone", [False, True])
def test_sparse_gradients_are_measured_and_clipped_as_dense_ones(max_norm, alone):
    sparse, dense = looked_up(sparse=True), looked_up(sparse=False)
    if alone:
        sparse, dense = sparse[:1], dense[:1]
    with torch.no_grad():
        norm, expected = total_norm(sparse), total_norm(dense)
        scale_to_norm(sparse, norm, max_norm=max_norm)
        scale_to_norm(dense, expected, max_norm=max_norm)
    assert sparse[0].is_sparse and expected > 0.1
    torch.testing.assert_close(norm.double(), expected.double())
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"precision": "fp16"}])
def test_a_sparse_embedding_trains_as_a_dense_one(fit, settings):
    class Looking(nn.Module):
        def __init__(self, *, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(5, 4, sparse=sparse)
            self.head = nn.Linear(4, 2)

        def forward(self, features):
            return self.head(self.embedding((features[:, 0] > 0).long()))

    sparse, dense = Looking(sparse=True), Looking(sparse=False)
    start = sparse.embedding.weight.detach().clone()
    optimizer = {"name": "SGD", "learning_rate": 0.1, "weight_decay": 0, "max_grad_norm": 0.1}
    fit(sparse, optimizer=optimizer, out="sparse", **settings)
    fit(dense, optimizer=optimizer, out="dense", **settings)
    assert not torch.equal(sparse.embedding.weight, start)
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())
