"""A whole training step with and without the kernels, one after another."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the encoder is made by transformers")

from . import training_step
from .suite import threads, time_one


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bf16-autocast"])
def variants(request):
    with threads():
        return list(training_step.variants(autocast=request.param))


@pytest.mark.parametrize("name", training_step.NAMES)
def test_step(benchmark, variants, name):
    time_one(benchmark, variants, name)
