"""The training data as one endless stream of windows, each the micro-batches of one optimizer step.

It comes from one source of batches (see sources.py), or from a mixture of several tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plugin_trainer.data.batches import count_rows
from plugin_trainer.data.epoch import Epoch
from plugin_trainer.data.iterated import Stateful
from plugin_trainer.data.mixing import Mixing
from plugin_trainer.data.mixture import Mixture
from plugin_trainer.data.rows import Part
from plugin_trainer.data.share import WHOLE, Share
from plugin_trainer.data.sources import Source, source_of
from plugin_trainer.data.unbatched import may_give_samples, refuse_sample
from plugin_trainer.errors import DataError


class Window:
    """The micro-batches of one optimizer step, and where they stand in their epoch.

    epoch  counted from 0
    batch  how many batches of the epoch are consumed once this window is done
    first  whether it begins its epoch

    digest tells whether all processes have loaded the same; empty where nothing can differ

    Of several processes each has its own rows of the micro-batches, and a StandIn for one of which
    no row is left for it.
    """

    __slots__ = ("_last", "_samples", "batch", "digest", "epoch", "first", "micro_batches")

    def __init__(
        self,
        micro_batches: list[Any],
        epoch: int,
        batch: int,
        first: bool,
        last: bool | Callable[[], bool],
        samples: int | None = None,
        digest: str = "",
    ) -> None:
        self.digest = digest
        self.micro_batches = micro_batches
        self.epoch = epoch
        self.batch = batch
        self.first = first
        self._last = last
        self._samples = samples

    @property
    def samples(self) -> int:
        """The rows of its batches, those of all processes."""
        if self._samples is None:
            self._samples = sum(map(count_rows, self.micro_batches))
        return self._samples

    @property
    def last(self) -> bool:
        """Whether it ends its epoch. Ask after its step: data without a length is looked into, one
        batch ahead, to find out.
        """
        if not isinstance(self._last, bool):
            self._last = self._last()
        return self._last


class TrainStream:
    """Windows over epochs without end, from any cursor.

    batches_per_epoch  batches in an epoch, None if that is not known before its end
    steps_per_epoch    optimizer steps in an epoch, or None
    epochs_vary        whether another epoch may have another number of batches: these two are those
                       of the first then
    inexact_because    why resuming in this data is not exact; empty if it is
    tasks              of a mixture: their names
    quotas             of a mixture: the batches that each task gives to an epoch, None where that
                       is not known before its end
    warnings           what in a mixture is likely not meant
    content            a digest of what the data of each task holds, as far as it lies open
    """

    def __init__(
        self,
        source: Source | Mixture,
        *,
        accumulate: int,
        may_give_samples: bool = False,
    ) -> None:
        self._source = source
        self._to_be_checked = may_give_samples
        self._accumulate = accumulate
        self.batches_per_epoch = source.batches_per_epoch
        self.steps_per_epoch = (
            None if source.batches_per_epoch is None else -(-source.batches_per_epoch // accumulate)
        )
        self.epochs_vary = not source.is_fixed
        self.inexact_because = source.inexact_because
        self.is_mixture = isinstance(source, Mixture)
        self.tasks = source.tasks if isinstance(source, Mixture) else ()
        self.quotas = source.quotas if isinstance(source, Mixture) else None
        self.content: dict[str, str] = {}
        self.warnings = source.warnings if isinstance(source, Mixture) else []
        # A cursor is all there is to know of any other source; no epoch outlives its windows then.
        self._has_state = not source.is_fixed
        self._epoch: Epoch | None = None
        self._loaded: dict[str, Any] = {}

    def windows(
        self, *, epoch: int, batch: int, begin: Callable[[int], None] = lambda epoch: None
    ) -> Iterator[Window]:
        """Every window from the cursor on: `batch` batches of `epoch` are already consumed.

        A loader's state that was loaded before knows its own cursor, and that one holds.

        begin  is called with the number of an epoch before anything of it is loaded

        Raises DataError for data that yields nothing in an epoch, or less than it promised, or
        samples in place of batches.
        """
        now = self._enter(epoch, batch, begin)
        while True:
            over = now.is_over()
            if over and now.batch == 0:
                raise DataError(
                    "the training data yielded no batch in a whole epoch",
                    hint="it is empty, or what it reads from is used up",
                )
            while not over:
                first = now.batch == 0
                taken = now.take(self._accumulate)
                if self._to_be_checked:
                    refuse_sample(taken[0], role="training")
                    self._to_be_checked = False
                window = _window(taken, now, first)
                yield window
                over = window.last
                del taken, window  # not needed while the next batches are loaded
            following = now.number + 1
            del now  # and its workers end before those of the next epoch begin
            begin(following)
            now = self._begin(following)
            if self._source.once and not now.has_more():
                raise DataError(
                    "the training data can be iterated only once, and another epoch begins",
                    hint="give a DataLoader, a Dataset or an object whose __iter__ begins anew",
                )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond the cursor, between two steps; mostly nothing."""
        if self._epoch is None:
            return self._loaded
        loader_state = self._epoch.loader_state()
        over = self._epoch.is_over()
        place = {"epoch": self._epoch.number, "batch": self._epoch.batch, "over": over}
        if isinstance(self._source, Stateful):
            more = over and self._epoch.has_more()
            return {**place, "more": more, "loader": loader_state}
        # Without a length, an epoch's end could only be found again by loading all of it.
        return place if over else {}

    def cursors(self, *, epoch: int, batch: int) -> dict[str, int]:
        """Of a mixture, at which of its batches each task stands at a place in an epoch."""
        if isinstance(self._source, Mixture):
            return self._source.cursors(epoch=epoch, batch=batch)
        return {}

    def close(self) -> None:
        """End the workers that load the data, however the windows ended."""
        self._source.close()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back; the next call of `windows` goes on from it."""
        self._loaded = dict(state)

    def _enter(self, number: int, batch: int, begin: Callable[[int], None]) -> Epoch:
        state, self._loaded = self._loaded, {}
        if isinstance(self._source, Stateful) and "loader" in state:
            number, batch, loader = state["epoch"], state["batch"], state["loader"]
            if not state["over"]:
                rest = self._source.batches_after(loader, epoch=number, start=batch)
                return self._epoch_of(rest, number, batch)
            begin(number + 1)
            after = self._source.epoch_after(loader, epoch=number, more=state["more"])
            return self._epoch_of(after, number + 1, 0)
        ended = state.get("over") and (state["epoch"], state["batch"]) == (number, batch)
        if ended or (self._source.is_fixed and batch >= (self.batches_per_epoch or 0)):
            number, batch = number + 1, 0
        if batch == 0:
            begin(number)
        return self._begin(number, batch)

    def _begin(self, number: int, batch: int = 0) -> Epoch:
        self._epoch = None
        return self._epoch_of(self._source.batches(epoch=number, start=batch), number, batch)

    def _epoch_of(self, batches: Iterator[Any], number: int, batch: int) -> Epoch:
        promised = self._source.batches_per_epoch  # read anew, for it may be the epoch's own
        epoch = Epoch(
            batches,
            number=number,
            batch=batch,
            length=None if self._source.ends_itself else promised,
            limit=self._source.at_most,
            state=self._source.state_dict if isinstance(self._source, Stateful) else None,
        )
        if self._has_state:
            self._epoch = epoch
        return epoch


def _window(taken: list[Any], epoch: Epoch, first: bool) -> Window:
    if not isinstance(taken[0], Part):
        return Window(taken, epoch.number, epoch.batch, first, epoch.is_over)
    samples = sum(part.rows for part in taken)
    batches = [part.batch for part in taken]
    digest = "".join(part.digest for part in taken)
    return Window(batches, epoch.number, epoch.batch, first, epoch.is_over, samples, digest)


def training_stream(
    data: Any,
    *,
    seed: int,
    accumulate: int = 1,
    batch_size: int = 32,
    limit: int | None = None,
    mixing: Mixing | None = None,
    share: Share = WHOLE,
) -> TrainStream:
    """The stream over whatever a data module's `train()` gave; several, by name, are a mixture.

    Lengths, positions and cursors are those of whole batches, whatever the share.

    batch_size  of the shuffled batches in which a map-style Dataset is loaded
    limit       an epoch is its first so many batches
    share       which rows of each batch are this process's

    Raises DataError for data that is empty or no data at all, and for batches of a size that cannot
    be shared out evenly.
    """
    source: Source | Mixture
    if isinstance(data, Mapping):
        if type(data).__module__.startswith("datasets."):
            raise DataError(
                f"train() gave a {type(data).__name__} of the splits {', '.join(map(str, data))}",
                hint="return one of them, such as data['train']; a dict of data sets is a mixture "
                "of tasks",
            )
        source = Mixture(
            data,
            mixing=mixing or Mixing(),
            seed=seed,
            batch_size=batch_size,
            limit=limit,
            share=share,
        )
        return TrainStream(source, accumulate=accumulate)
    source = source_of(data, seed=seed, batch_size=batch_size, limit=limit, share=share)
    return TrainStream(source, accumulate=accumulate, may_give_samples=may_give_samples(data))
