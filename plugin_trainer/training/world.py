"""The processes that train one run together: who this one is, and what they tell each other.

What goes through here travels between CPUs and makes them wait for one another: it belongs to the
moments of a run (a start, an evaluation, a log line, a checkpoint), never to its steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from plugin_trainer.data.share import Share

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    rank        this one's number, counted from 0
    size        how many there are
    local_rank  its number among those on this machine, which is that of its device
    group       how they reach each other on the CPU; None for the only process
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Which part of each batch is its own."""
        return Share(self.rank, self.size)

    def gather(self, value: Value) -> list[Value]:
        """What every process gave, in the order of their numbers. All must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: Value) -> Value:
        """What the first process gave. All must call it."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


ALONE = World()
"""The world of a run in one process."""
