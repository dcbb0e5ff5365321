"""The order that a sampler of torch gives an epoch: a pure function of seed, task and epoch."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from plugin_trainer.data.order import Chosen, Indices, derive_seed
from plugin_trainer.data.share import Share
from plugin_trainer.errors import DataError

DRAWN = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""The samplers whose order depends on their generator and on nothing else."""

FIXED = (SequentialSampler, DistributedSampler, range, list, tuple)
"""Those that draw nothing, or from a seed of their own and the epoch they are told."""


@dataclass(frozen=True)
class Sampling:
    """How a map-style loader makes batches of what its sampler gives.

    sampler     gives the indices
    batch_size  None takes them one by one
    as_list     whether the loader loads the samples of a batch each and collates them; otherwise
                the data set is asked once, with all the indices or with one
    """

    sampler: Any
    batch_size: int | None
    drop_last: bool
    as_list: bool


def sampling_of(loader: DataLoader) -> Sampling:
    """The sampling of a loader; a plain batch sampler is taken apart."""
    outer = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    as_list = loader.batch_sampler is not None
    if type(outer) is BatchSampler:
        return Sampling(outer.sampler, outer.batch_size, outer.drop_last, as_list)
    return Sampling(outer, None, False, as_list)


def check_shared(data: Any, share: Share, *, role: str) -> None:
    """Raise DataError, naming the role of the data, for what is divided among processes already."""
    if share.size == 1 or not (divider := _divider(data)):
        return
    raise DataError(
        f"the {role} data is divided among processes by {divider}, and a run shares its batches "
        f"out among its {share.size} processes itself: the data would be divided twice",
        hint="leave that out, and give the loader the batch size of all processes together",
    )


def _divider(data: Any) -> str:
    """What divides the data of a loader among processes; empty if nothing is seen to."""
    batch_sampler = getattr(data, "batch_sampler", None)
    samplers = (getattr(data, "sampler", None), getattr(batch_sampler, "sampler", None))
    if any(isinstance(its, DistributedSampler) for its in samplers):
        return "a DistributedSampler"
    # An iterable data set of Hugging Face keeps there how it was divided.
    if getattr(getattr(data, "dataset", data), "_distributed", None) is not None:
        return "split_dataset_by_node"
    return ""


def why_order_unknown(loader: Any) -> str:
    """Why the order of a loader cannot be known beforehand; empty if it can."""
    if type(loader) is not DataLoader:
        return f"the training data is a {type(loader).__name__}, not a DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "the training data set is iterable, so its order is its own"
    sampling = sampling_of(loader)
    kind = type(sampling.sampler)
    # A list of ready batches is as fixed as a list of indices.
    if sampling.as_list and sampling.batch_size is None and kind not in (list, tuple):
        return f"the training loader has a batch sampler of its own ({kind.__name__})"
    # A class derived from one of these may do anything.
    if kind in DRAWN or kind in FIXED:
        return ""
    return f"the training loader has a sampler of its own ({kind.__name__})"


def sampler_order(sampler: Any, *, seed: int, task: str, epoch: int) -> Indices:
    """The indices that a sampler of a known kind gives in an epoch.

    Drawn as the sampler would draw them, but from a generator of the epoch: neither the process's
    streams nor the sampler's own generator move.
    """
    kind = type(sampler)
    if kind is SequentialSampler:
        return range(len(sampler.data_source))
    if kind in (range, list, tuple):
        return sampler
    if kind is DistributedSampler:
        sampler.set_epoch(epoch)
        return array("q", sampler)
    epoch_seed = derive_seed(seed, task, epoch)
    if kind is WeightedRandomSampler:
        weights, replacement = sampler.weights, sampler.replacement
        generator = torch.Generator(device=weights.device).manual_seed(epoch_seed)
        return torch.multinomial(weights, len(sampler), replacement, generator=generator).cpu()
    generator = torch.Generator().manual_seed(epoch_seed)
    if kind is SubsetRandomSampler:
        order = torch.randperm(len(sampler.indices), generator=generator)
        return Chosen(sampler.indices, order)
    size, count = len(sampler.data_source), len(sampler)
    if sampler.replacement:
        return torch.randint(size, (count,), generator=generator)
    # The whole data set as often as it fits, then a part of it.
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-count // size))]
    return rounds[0][:count] if len(rounds) == 1 else torch.cat(rounds)[:count]
