"""What the tests of several ops share."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from plugin_trainer.ops import library


@pytest.fixture
def every_isa():
    """A call for each instruction set, to use it from then on."""
    if library.find() is None:
        yield [lambda: None]
        return
    before = torch.ops.ptrain.isa()
    yield [partial(torch.ops.ptrain.use_isa, name) for name in ("baseline", "avx2", "avx512")]
    torch.ops.ptrain.use_isa(before)
