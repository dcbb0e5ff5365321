"""The moving average in every form, one after another."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from plugin_trainer.ops.bench import ema
from plugin_trainer.ops.bench.shapes import LISTS

from .suite import time_one


@cache
def variants(name: str, dtype: torch.dtype):
    work = ema.Work(LISTS[name], dtype=dtype)
    return [ema.ours(work), *(ema.peers if dtype == torch.float32 else ema.peers_16_bit)(work)]


def names(dtype: torch.dtype) -> list[str]:
    return [variant.name for variant in variants("2,000 x 256", dtype)]


@pytest.mark.parametrize("name", names(torch.float32))
@pytest.mark.parametrize("work", ["MiniLM", "1 M in 103", "2,000 x 256"])
def test_float32(benchmark, work, name):
    time_one(benchmark, variants(work, torch.float32), name)


@pytest.mark.parametrize("name", names(torch.bfloat16))
def test_bfloat16(benchmark, name):
    time_one(benchmark, variants("MiniLM", torch.bfloat16), name)
