"""The norm of all gradients, ours and torch's, one after another."""

from __future__ import annotations

from functools import cache

import pytest

from . import norm
from .suite import time_one


@cache
def variants(name: str):
    return norm.variants(norm.make_gradients(norm.SHAPES[name]))


@pytest.mark.parametrize("name", [variant.name for variant in variants("1 M in 103")])
@pytest.mark.parametrize("work", ["MiniLM", "1 M in 103", "2,000 x 256"])
def test_norm(benchmark, work, name):
    time_one(benchmark, variants(work), name)


@pytest.mark.parametrize("work", list(norm.SHAPES))
def test_threads_change_no_bit(work):
    gradients = norm.make_gradients(norm.SHAPES[work])
    assert norm.norm_with_threads(gradients, 1) == norm.norm_with_threads(gradients, 2)
