"""Join the other processes that torchrun started, where it did."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from plugin_trainer.errors import PtrainError
from plugin_trainer.training.distributed.world import ALONE, World

# An evaluation, or the writing of a checkpoint, in which the others wait for the slowest.
_PATIENCE = timedelta(minutes=30)
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def restarts() -> int:
    """How often torchrun has started these processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """What all processes of one launch have in common, restarts included; empty for no launch."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


def _end_with_launcher() -> None:
    """Have Linux send SIGTERM, at which a run saves and ends, when the launcher is gone.

    One that is killed cannot end its processes, and nobody else knows of them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@functools.cache
def join() -> World:
    """Meet the processes that were started together with this one; ALONE where none were.

    They are told apart by the variables that torchrun sets. Tensors on a CPU travel by gloo, those
    on CUDA by nccl. Raises PtrainError if the others cannot be reached.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
    elif not dist.is_initialized():
        _end_with_launcher()
        local_rank = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
            # Processes that torchrun starts again find what the ones before them have left in the
            # launcher's store, and would knock at doors that are no more.
            store = dist.PrefixStore(f"start {restarts()}", store)
            dist.init_process_group(store=store, rank=rank, world_size=size, timeout=_PATIENCE)
            atexit.register(leave)  # of a script that calls `fit` and knows of no process group
        except (RuntimeError, ValueError) as error:
            raise PtrainError(
                f"the other processes cannot be reached: {error}",
                hint="start them all with torchrun, with one --rdzv-endpoint",
            ) from error
    if dist.get_world_size() == 1:
        return ALONE
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        group=dist.new_group(backend="gloo", timeout=_PATIENCE),
    )


def leave() -> None:
    """Let go of the other processes, at the very end.

    A process that still holds a model which speaks to the others, or has a thread that does, may
    end by an abort: such a thread asks for the interpreter when that is no more.
    """
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    join.cache_clear()
