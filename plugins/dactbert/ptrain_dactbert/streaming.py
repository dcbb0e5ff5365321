"""Training batches from a stream: rows are read, shuffled and tokenised as they are needed.

A block of rows is read, shuffled and used up before the next one is read. So a place in the stream
is small, whatever the block holds, and resuming is exact: the block is read once more, its order is
drawn once more, and the rows already used are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.data.texts.sources import Place, Reader

OpenReader = Callable[[Place | None, int], Reader]
"""Opens the reader of an epoch at a place; without one at the beginning."""

Collate = Callable[[Sequence[Row]], dict[str, Any]]


@dataclass
class Position:
    """What is used up of a stream.

    epoch   counted from 0
    block   the number of the block in its epoch
    taken   how many rows of the block are used, in its shuffled order
    source  where the block begins; None: at the first row
    """

    epoch: int = 0
    block: int = 0
    taken: int = 0
    source: Place | None = None


class StreamedBatches:
    """One epoch each time it is iterated. It has no length; its place can be saved and restored.

    block_size  how many rows are in memory and shuffled at a time; 1: the order of the source
    """

    def __init__(
        self,
        open_reader: OpenReader,
        *,
        collate: Collate,
        batch_size: int,
        block_size: int,
        seed: int,
    ) -> None:
        self._open_reader = open_reader
        self._collate = collate
        self._batch_size = batch_size
        self._block_size = block_size
        self._seed = seed
        self._position = Position()
        self._restored = False

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at the start of this epoch, unless a place in it is restored."""
        if not (self._restored and self._position.epoch == epoch):
            self._position, self._restored = Position(epoch), False

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was given."""
        return dict(vars(self._position))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from there."""
        self._position, self._restored = Position(**state), True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Read here, and not when the first batch is asked for: the place may be set anew till then.
        restored, self._restored = self._restored, False
        if not restored:
            self._position = Position(self._position.epoch)
        return self._batches(self._position, restored=restored)

    def _batches(self, start: Position, *, restored: bool) -> Iterator[dict[str, Any]]:
        given = 0
        for batch in self._rest_of_epoch(start):
            given += 1
            yield batch
        self._position = Position(start.epoch + 1)
        if restored and given == 0:  # the place was the end of its epoch
            yield from self._batches(self._position, restored=False)

    def _rest_of_epoch(self, start: Position) -> Iterator[dict[str, Any]]:
        rows = self._rows(start)
        # The place moves with each batch, before it is given: it is asked for between batches.
        while batch := list(islice(rows, self._batch_size)):
            self._position = batch[-1][1]
            yield self._collate([row for row, _ in batch])

    def _rows(self, start: Position) -> Iterator[tuple[Row, Position]]:
        """Each row of the rest of the epoch, and the place after it."""
        reader = self._open_reader(start.source, start.epoch)
        rows = iter(reader)
        number, taken = start.block, start.taken
        while True:
            begin = start.source if number == start.block else reader.place()
            block = list(islice(rows, self._block_size))
            if not block:
                return
            order = self._order(len(block), epoch=start.epoch, block=number)
            for used, index in enumerate(order[taken:], start=taken + 1):
                yield block[index], Position(start.epoch, number, used, begin)
            number, taken = number + 1, 0

    def _order(self, size: int, *, epoch: int, block: int) -> list[int]:
        seed = derive_seed(self._seed, "block", epoch, block)
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        order: list[int] = drawn.tolist()
        return order
