"""Which way several processes train: by replicas of the model or by shards of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings import RunSettings
from plugin_trainer.training.distributed.replicas import Replicas
from plugin_trainer.training.distributed.sharding import LocalShards, shard
from plugin_trainer.training.distributed.shards import Shards
from plugin_trainer.training.distributed.together import Together
from plugin_trainer.training.distributed.world import World

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


def split_over(
    world: World, model: nn.Module, device: torch.device, settings: RunSettings
) -> LocalShards | None:
    """Split the model over the processes if the settings say so; the part of this one.

    Before the optimizer and the average are made. Raises PtrainError for a model that cannot be
    split, and for settings that do not go with that.
    """
    if world.size == 1 or settings.parallel.strategy != "fsdp2":
        return None
    if settings.precision == "fp16":
        raise PtrainError(
            'parallel.strategy: "fsdp2" does not go with precision = "fp16", whose loss scale '
            "every process would move by itself",
            hint='use precision = "bf16", or parallel.strategy = "ddp"',
        )
    from torch.distributed.device_mesh import init_device_mesh

    shard(model, init_device_mesh(device.type, (world.size,)))
    return LocalShards(model)


def make_together(run: Run) -> Together | None:
    """How the processes of a run make a step; None for the only one.

    Raises PtrainError for a run that several processes cannot make.
    """
    if run.world.size == 1:
        return None
    if whose := run.hooks.makes_steps:
        raise PtrainError(
            f"{whose} makes the whole training step itself, and does not say how several processes "
            "share it",
            hint="train it in one process",
        )

    def wants_stop() -> bool:
        return run.wish is not None

    totals = run.tasks is not None and run.settings.accumulate > 1  # of a step of several tasks
    if run.shards is not None:
        return Shards(
            run.model,
            run.shards,
            run.world,
            device=run.device,
            totals=totals,
            wants_stop=wants_stop,
        )
    search = run.settings.parallel.unused_parameters == "search" or run.stream.is_mixture
    return Replicas(
        run.model,
        run.world,
        device=run.device,
        unused=True if search else None,
        totals=totals,
        wants_stop=wants_stop,
    )


def differing_from_one_process(run: Run) -> list[str]:
    """What the start says of a model whose losses are not those of one process."""
    if run.together is None:
        return []
    norms = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return [
            "batch normalisation looks at each process's own rows: the losses are not those of one "
            "process"
        ]
    return []
