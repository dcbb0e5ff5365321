"""Nested Python values as JSON and a flat set of tensors, and back exactly; nothing is pickled.

JSON has no tuples, no keys but strings, no infinities and no tensors. Each of these becomes an
object
with one key that starts with "$"; a tensor's value goes beside the JSON under the path it stood at.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def encode(value: Any, tensors: dict[str, Tensor], *, at: str = "") -> Any:
    """The value as JSON; its tensors are put into `tensors` under their paths.

    Raises TypeError, naming the path, for a value that cannot be written without pickling.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        while at in tensors:  # "a/b" may be one key or two, and 1 and "1" are two keys
            at += "'"
        tensors[at] = value.detach()
        return {"$tensor": at}
    if isinstance(value, np.ndarray):
        items = encode(value.reshape(-1).tolist(), tensors, at=at)
        return {"$array": [value.dtype.str, list(value.shape), items]}
    if isinstance(value, Mapping):
        return _encode_mapping(value, tensors, at=at)
    if isinstance(value, (list, tuple, set, frozenset)):
        if all(type(item) is int for item in value):  # Python's random state is 625 of them
            items = list(value)
        else:
            items = [encode(item, tensors, at=f"{at}/{index}") for index, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return {"$tuple" if isinstance(value, tuple) else "$set": items}
    raise TypeError(
        f"the state at '{at}' is a {type(value).__name__}: only numbers, text, lists, tuples, "
        "sets, mappings, arrays and tensors can be written"
    )


def _encode_mapping(value: Mapping[Any, Any], tensors: dict[str, Tensor], *, at: str) -> Any:
    plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
    if plain and type(value) in (dict, OrderedDict):
        return {key: encode(item, tensors, at=f"{at}/{key}") for key, item in value.items()}
    pairs = [
        [encode(key, tensors, at=at), encode(item, tensors, at=f"{at}/{key}")]
        for key, item in value.items()
    ]
    return {"$counter" if isinstance(value, Counter) else "$pairs": pairs}


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given. Raises KeyError if a tensor is missing."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag.startswith("$"):
            return _decode_tagged(tag, content, tensors)
    return {key: decode(item, tensors) for key, item in value.items()}


def _decode_tagged(tag: str, content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if tag == "$tensor":
        return tensors[content]
    if tag == "$float":
        return float(content)
    if tag == "$array":
        dtype, shape, items = content
        return np.array(decode(items, tensors), dtype=dtype).reshape(shape)
    if tag in ("$pairs", "$counter"):
        pairs = {decode(key, tensors): decode(item, tensors) for key, item in content}
        return Counter(pairs) if tag == "$counter" else pairs
    items = [decode(item, tensors) for item in content]
    return tuple(items) if tag == "$tuple" else set(items)
