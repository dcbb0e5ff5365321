"""Which part of every batch is this process's, where several train together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Share:
    """One of `size` processes that share each batch: the one numbered `rank`, counted from 0.

    The batch that a run file speaks of is the batch of all of them, so that the same run file makes
    the same steps whatever their number.
    """

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> range:
        """Its rows of a batch of `count`. The parts differ by one row at most, the longer first."""
        each, left = divmod(count, self.size)
        start = self.rank * each + min(self.rank, left)
        return range(start, start + each + (self.rank < left))


WHOLE = Share()
"""The share of the only process: everything."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """A batch that a process goes along with where none is left for it, and that counts nothing.

    All processes must take part in what they do together, as often as each other.
    """

    batch: Any


def batch_of(batch: Any) -> Any:
    """The batch itself, whether it counts or only stands in."""
    return batch.batch if isinstance(batch, StandIn) else batch
