"""What a batch holds, as a few bytes: processes that load the same data can see that they do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest_of(batch: Any) -> str:
    """A digest of a batch's whole numbers and texts: its labels, tokens, names.

    Fractions count by their shape only, unless there is nothing else: the pixels of an image may
    have been altered by random streams of a library's own, while its label tells that it is the
    same image. Objects of other kinds count by their class, for equal ones may print differently.
    """
    leaves = list(_leaves(batch))
    only_fractions = all(_is_fraction(leaf) for leaf in leaves if type(leaf) is not _Key)
    found = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        found.update(_described(leaf).encode())
        if only_fractions or not _is_fraction(leaf):
            found.update(_content(leaf))
    return found.hexdigest()


class _Key(str):
    """The name of an entry, which says nothing of what the batch holds."""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield _Key(key)
            yield from _leaves(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _is_fraction(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "fc"
    return isinstance(leaf, (float, complex))


def _described(leaf: Any) -> str:
    form = tuple(leaf.shape) if isinstance(leaf, (Tensor, np.ndarray)) else ""
    return f"{type(leaf).__name__}{getattr(leaf, 'dtype', '')}{form};"


def _content(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided:
            return b""
        whole = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return whole.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(leaf, np.ndarray):
        return b"" if leaf.dtype == object else leaf.tobytes()
    known = isinstance(leaf, (str, bytes, int, float, complex, np.generic))
    return repr(leaf).encode() if known else b""
