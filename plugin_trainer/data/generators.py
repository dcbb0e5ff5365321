"""Generators that a loader has of its own: an evaluation draws from them the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from plugin_trainer.data.iterated import parts_of
from plugin_trainer.data.order import derive_seed


@contextmanager
def seeded_generators(loader: Any, seed: int) -> Iterator[None]:
    """Inside, the generators of a loader, or of each of several by name, and those of its samplers
    begin at the seed; afterwards they are as they were.
    """
    loaders = loader.values() if isinstance(loader, Mapping) else [loader]
    holders = [part for one in loaders for part in (one, *parts_of(one))]
    found = [getattr(part, "generator", None) for part in holders]
    generators = {id(one): one for one in found if isinstance(one, torch.Generator)}
    before = [(generator, generator.get_state()) for generator in generators.values()]
    for number, (generator, _) in enumerate(before):
        generator.manual_seed(derive_seed(seed, "generator", number))
    try:
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)
