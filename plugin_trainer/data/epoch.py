"""What is left of one epoch: its batches to come, and whether there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from plugin_trainer.errors import DataError

_NOT_LOOKED = object()
_END = object()


class Epoch:
    """The batches of one epoch still to come. Looks one ahead where only that can tell its end.

    number  counted from 0
    batch   how many of its batches are consumed
    """

    def __init__(
        self,
        batches: Iterator[Any],
        *,
        number: int,
        batch: int,
        length: int | None,
        limit: int | None,
        state: Callable[[], Any] | None = None,
    ) -> None:
        """Load nothing yet.

        length  batches in the epoch, None if that is not known before its end
        limit   batches after which it ends in any case
        state   the state of the loader that the batches come from, if it has one
        """
        self.number, self.batch = number, batch
        self._batches, self._state = batches, state
        self._promised = length is not None
        end = length if length is not None else limit
        self._left = None if end is None else end - batch
        self._ahead: Any = _NOT_LOOKED
        self._state_before: Any = None

    def take(self, count: int) -> list[Any]:
        """The next batches, fewer than `count` only where the epoch ends.

        Raises DataError if it ends before its length.
        """
        if self._left is not None:
            count = min(count, self._left)
        taken = []
        for _ in range(count):
            batch = self._next()
            if batch is _END:
                break
            taken.append(batch)
        if self._promised and len(taken) < count:
            raise DataError(
                "the training data ended before the length it gave",
                hint="its __len__ promises more batches than it yields",
            )
        self.batch += len(taken)
        if self._left is not None:
            self._left -= len(taken)
        return taken

    def is_over(self) -> bool:
        """Whether no batch of it is left: takes a look ahead if it has no length."""
        return self._left == 0 or not (self._promised or self.has_more())

    def has_more(self) -> bool:
        """Whether its loader has another batch, past a length or a limit too: loads it."""
        if self._ahead is _NOT_LOOKED:
            self._state_before = self._state() if self._state is not None else None
            self._ahead = next(self._batches, _END)
        return self._ahead is not _END

    def loader_state(self) -> Any:
        """The state of its loader after the batches consumed, looked ahead or not."""
        if self._ahead is not _NOT_LOOKED:
            return self._state_before
        return self._state() if self._state is not None else None

    def _next(self) -> Any:
        if self._ahead is _NOT_LOOKED:
            return next(self._batches, _END)
        batch = self._ahead
        if batch is not _END:
            self._ahead, self._state_before = _NOT_LOOKED, None
        return batch
