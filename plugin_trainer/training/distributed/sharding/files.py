"""Tensors of several processes in one folder: safetensors by torch.distributed.checkpoint (DCP).

Each process writes its own rows into a file of its own, with where they belong in the file's
header. What every process has is written by the first. Any number of processes can read it back:
each takes the rows it needs from the files that have them. Nothing is pickled on disk. On several
machines the folder must be one that all of them see.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.errors import CheckpointError
from plugin_trainer.training.distributed.sharding.tensors import is_sharded, local_part

if TYPE_CHECKING:
    from torch.distributed.checkpoint import CheckpointException


def write_shards(tensors: Mapping[str, Tensor], folder: Path, *, group: Any = None) -> None:
    """Write tensors into an existing folder; all processes of the group call it.

    tensors  the same names and shapes in all of them: sharded ones, or plain ones of which the
             first process's are written
    group    None: all processes

    Raises OSError in all of them if the disk of one refuses.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter

    if not tensors:
        return
    try:
        with _quiet():
            dcp.save(
                _apart(tensors),
                storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
                planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                process_group=group,
            )
    except dcp.CheckpointException as error:
        _raise_os_error(error)
        rank, cause = _first_failure(error)
        raise RuntimeError(f"process {rank} could not write into {folder}: {cause}") from error


def read_shards_into(
    tensors: Mapping[str, Tensor], folder: Path, *, group: Any = None, alone: bool = False
) -> None:
    """Fill tensors from a folder that `write_shards` has filled, with any number of processes.

    tensors  as many as are wanted of those in the folder, sharded anyhow or plain, of the shapes
             there; the same names in all processes
    group    None: all processes; all must call it
    alone    read without the others, who need not call it

    Raises CheckpointError, in all processes, if a tensor is missing or of another shape, and
    OSError if a file cannot be read.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    if not tensors:
        return
    try:
        with _quiet():
            dcp.load(
                dict(tensors),
                storage_reader=HuggingFaceStorageReader(str(folder)),
                process_group=group,
                no_dist=alone,
            )
    except dcp.CheckpointException as error:
        _raise_os_error(error)
        rank, cause = _first_failure(error)
        raise CheckpointError(f"process {rank} could not read {folder}: {cause}") from error


def described(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The shape and the dtype of each whole tensor in a folder; read from the files' headers."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    if not any(folder.glob("*.safetensors")):
        return {}
    metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata()
    return {
        name: (its.size, its.properties.dtype) for name, its in metadata.state_dict_metadata.items()
    }


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole, on the CPU; without other processes."""
    tensors = {
        name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in described(folder).items()
    }
    read_shards_into(tensors, folder, alone=True)
    return tensors


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, those that share memory as copies: safetensors refuses them."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if not is_sharded(tensor):
            tensor = tensor.contiguous()
        memory = local_part(tensor).untyped_storage().data_ptr()
        if memory and memory in seen:
            tensor = tensor.clone()
        seen.add(memory)
        apart[name] = tensor
    return apart


def _first_failure(error: CheckpointException) -> tuple[int, BaseException]:
    rank = min(error.failures)
    return rank, error.failures[rank][0]


def _raise_os_error(error: CheckpointException) -> None:
    """What a disk answered, in whichever process, as what it is."""
    for cause, _ in error.failures.values():
        if isinstance(cause, OSError):
            raise cause from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Which is what was asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        # What torch 2.10 says of its own code.
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield
