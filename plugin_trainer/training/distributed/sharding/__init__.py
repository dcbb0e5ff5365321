"""A model whose weights, gradients and optimizer state are split over processes (FSDP2)."""

from plugin_trainer.training.distributed.sharding.local import (
    LocalShards,
    check_elementwise,
    local_norm_squared,
)
from plugin_trainer.training.distributed.sharding.model import (
    class_of,
    explained,
    forget_gathered,
    shard,
)
from plugin_trainer.training.distributed.sharding.tensors import (
    fitted,
    is_sharded,
    local_part,
    part_of,
)

__all__ = [
    "LocalShards",
    "check_elementwise",
    "class_of",
    "explained",
    "fitted",
    "forget_gathered",
    "is_sharded",
    "local_norm_squared",
    "local_part",
    "part_of",
    "shard",
]
