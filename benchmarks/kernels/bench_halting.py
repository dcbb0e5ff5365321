"""The halting loss with its gradients in every eager form, one after another."""

from __future__ import annotations

from functools import cache

import pytest

from plugin_trainer.ops.bench import halting

from .suite import time_one


@cache
def variants(size: tuple[int, int, int]):
    work = halting.Work(size)
    return [halting.ours(work), *halting.peers(work)]


@pytest.mark.parametrize("name", [variant.name for variant in variants(halting.SIZES[0])])
@pytest.mark.parametrize("size", halting.SIZES, ids=str)
def test_forward_and_backward(benchmark, size, name):
    time_one(benchmark, variants(size), name)
