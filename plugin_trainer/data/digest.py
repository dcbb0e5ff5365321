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

    Fractions and pixels count by their shape only, if anything else tells the rows apart: they may
    have been altered by random streams of a library's own, while the label tells that it is the
    same image. A mask that is 1 everywhere tells nothing. Objects of other kinds count by their
    class, for equal ones may print differently.
    """
    leaves = list(_leaves(batch))
    alterable = any(_tells_rows_apart(leaf) for leaf in leaves)
    found = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        found.update(_described(leaf).encode())
        if not (alterable and _may_be_altered(leaf)):
            found.update(_content(leaf))
    return found.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    """What a batch is made of; of a mapping in the order of its keys' names, for one that was made
    from a set has another order in each process.
    """
    if isinstance(value, Mapping):
        for key, entry in sorted(value.items(), key=lambda item: str(item[0])):
            yield _Key(key)
            yield from _leaves(entry)
    elif isinstance(value, (list, tuple)) and not _is_column(value):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _is_column(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether it holds a text or a whole number for each row."""
    whole = (str, bytes, int, np.integer)
    return bool(value) and all(isinstance(entry, whole) for entry in value)


def _tells_rows_apart(leaf: Any) -> bool:
    if _may_be_altered(leaf):
        return False
    if isinstance(leaf, Tensor):
        return _is_plain(leaf) and leaf.ndim > 0 and bool((leaf != leaf[:1]).any())
    if isinstance(leaf, np.ndarray):
        return leaf.ndim > 0 and not leaf.dtype.hasobject and bool((leaf != leaf[:1]).any())
    return isinstance(leaf, (list, tuple)) and len(set(leaf)) > 1


def _may_be_altered(leaf: Any) -> bool:
    """Whether it is what augmentations work on: fractions, and pixels in bytes."""
    if isinstance(leaf, Tensor):
        pixels = _is_plain(leaf) and leaf.dtype == torch.uint8 and leaf.ndim > 2
        return pixels or leaf.is_floating_point() or leaf.is_complex()
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "fc" or (leaf.dtype == np.uint8 and leaf.ndim > 2)
    return isinstance(leaf, (float, complex, np.floating, np.complexfloating))


def bytes_of(tensor: Tensor) -> bytes:
    """The elements of a strided tensor, one behind the other."""
    whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return whole.flatten().view(torch.uint8).numpy().tobytes()


class _Key(str):
    """The name of an entry, which says nothing of what the batch holds."""


def _described(leaf: Any) -> str:
    arrays = isinstance(leaf, np.ndarray) or (isinstance(leaf, Tensor) and _is_plain(leaf))
    form = tuple(leaf.shape) if arrays else ""
    return f"{type(leaf).__name__}{getattr(leaf, 'dtype', '')}{form};"


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _content(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        return bytes_of(leaf) if _is_plain(leaf) else b""
    if isinstance(leaf, np.ndarray):
        return b"" if leaf.dtype.hasobject else leaf.tobytes()
    known = isinstance(leaf, (str, bytes, int, float, complex, np.generic, list, tuple))
    return repr(leaf).encode() if known else b""
