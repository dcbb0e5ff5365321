"""Every random stream of the process: saved in a checkpoint, kept still by an evaluation."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.seeds import seed_everything


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Inside, torch refuses operations whose result differs from one time to the next.

    Afterwards torch is as it was before. cuBLAS needs its workspace fixed before it is first used,
    so the variable stays set.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = before[1:]


def capture_rng() -> dict[str, Any]:
    """The state of every random stream, as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],  # type: ignore[union-attr]
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()] if _cuda() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put every stream back. Devices that the state does not know are left as they are."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_tensor(state["torch"]))
    if _cuda() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(text) for text in state["cuda"]])


@contextmanager
def own_rng(seed: int, *name: int | str) -> Iterator[None]:
    """Draw from streams seeded by `seed` and `name`, then put the process's own streams back."""
    before = capture_rng()
    seed_everything(derive_seed(seed, *name))
    try:
        yield
    finally:
        restore_rng(before)


def _cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
