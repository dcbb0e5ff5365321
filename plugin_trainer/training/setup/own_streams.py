"""Random streams that a user's data or model keeps for itself: a checkpoint does not hold them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from plugin_trainer.training.setup.code_state import is_users_own

_STREAMS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_MANY = 1000
"""So many objects are looked into, and so many entries of a list."""


def why_inexact(data: Iterable[object], model: nn.Module) -> str:
    """Why what is drawn after a resume is not what would have been; empty if nothing is found.

    data  loaders and data sets. What has a `state_dict` is taken to answer for itself, and so is a
          module with an extra state
    """
    names = [*_names_in(data), *(name for module in model.modules() for name in _own(module))]
    if not names:
        return ""
    listed = ", ".join(dict.fromkeys(names))
    return f"a checkpoint does not hold {listed}, which draws at random by itself"


def _names_in(data: Iterable[object]) -> Iterator[str]:
    waiting, seen = list(data), set[int]()
    while waiting and len(seen) < _MANY:
        thing = waiting.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            waiting += list(thing.values())[:_MANY]
        elif isinstance(thing, (list, tuple)):
            waiting += thing[:_MANY]
        elif isinstance(thing, DataLoader):
            waiting += [thing.dataset, thing.collate_fn]
        elif not isinstance(thing, (Sampler, nn.Module)) and not hasattr(thing, "state_dict"):
            held = getattr(thing, "__self__", thing)  # a method's object
            # A class that was typed into a notebook has no file.
            if type(held).__module__ == "__main__" or is_users_own(type(held)):
                yield from _own(held)
            # What wraps a data set, such as torch's Subset, may be another's.
            waiting += list(getattr(held, "__dict__", {}).values())


def _own(thing: object) -> Iterator[str]:
    """The streams among the attributes of an object."""
    if getattr(type(thing), "get_extra_state", None) not in (None, nn.Module.get_extra_state):
        return
    for name, value in getattr(thing, "__dict__", {}).items():
        if isinstance(value, _STREAMS):
            yield f"{type(thing).__name__}.{name}"
