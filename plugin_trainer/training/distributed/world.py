"""The processes that train one run together: who this one is, and what they tell each other.

What goes through here travels between CPUs and makes them wait for one another: it belongs to the
moments of a run (a start, an evaluation, a log line, a checkpoint), never to its steps. A process
that cannot go on says so at the next of these moments, so that none waits for it in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from plugin_trainer.data.share import Share
from plugin_trainer.errors import PtrainError, TrainingFailed
from plugin_trainer.registry.blame import hint_for, in_words

Value = TypeVar("Value")


@dataclass(frozen=True)
class Failure:
    """Why a process cannot go on, for the others to read."""

    rank: int
    message: str
    hint: tuple[str, ...]
    exit_code: int


class PeerFailed(TrainingFailed):
    """Another process cannot go on, and said so.

    met  whether all know it by now: they have met, and not only taken note in a step
    """

    def __init__(self, *failures: Failure) -> None:
        super().__init__("another process failed")
        self.met = False
        self.learn(failures)

    def learn(self, failures: Sequence[Failure]) -> None:
        """What it was."""
        if failures:
            first = failures[0]
            self.message = f"process {first.rank}: {first.message}"
            self.hint, self.exit_code = first.hint, first.exit_code
            self.met = self.told = True


class PeerLost(TrainingFailed):
    """Another process is gone without a word."""

    def __init__(self) -> None:
        super().__init__(
            "another process of the run is gone: it was killed, or its machine is not reached",
            hint="the checkpoints are whole; to go on from the last: --resume auto",
        )


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
        """What every process gave, in the order of their numbers. All must call it.

        Raises PeerFailed in every process if one of them calls `fail` instead, and PeerLost if one
        is gone.
        """
        if self.size == 1:
            return [value]
        given = self._meet(value)
        if failures := [other for other in given if isinstance(other, Failure)]:
            raise PeerFailed(*failures)
        return given

    def from_first(self, value: Value | None) -> Value:
        """What the first process gave; what the others give is dropped. All must call it."""
        return self.gather(value if self.is_first else None)[0]  # type: ignore[return-value]

    def fail(self, error: BaseException | None) -> list[Failure]:
        """Meet the others to tell them why this process cannot go on; the failures of all.

        None for a process that has only taken note that another failed.
        """
        if error is not None:
            error.told = True  # type: ignore[attr-defined]
        given = self._meet(None if error is None else _failure(error, self.rank))
        return [other for other in given if isinstance(other, Failure)]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error inside, in place of what they wait for; but for one that is
        marked `alone`, of which they can only hear by this process's end.
        """
        try:
            yield
        except Exception as error:
            if self.size > 1 and not was_told(error) and not getattr(error, "alone", False):
                self.fail(error)
            raise

    def _meet(self, value: Any) -> list[Any]:
        given: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(given, value, group=self.group)
        except RuntimeError as error:  # DistError, or what gloo makes of a closed connection
            raise PeerLost from error
        return given


def was_told(error: BaseException) -> bool:
    """Whether the other processes know of an error."""
    return getattr(error, "told", False) or isinstance(error, (PeerFailed, PeerLost))


ALONE = World()
"""The world of a run in one process."""


def _failure(error: BaseException, rank: int) -> Failure:
    if isinstance(error, PtrainError):
        return Failure(rank, error.message, tuple(error.hint), error.exit_code)
    hint = hint_for(error) if isinstance(error, Exception) else ()
    return Failure(rank, in_words(error), tuple(hint), 1)
