"""What a data module offers, and how its metrics are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # it takes a second, and many runs have no metric
    from torchmetrics import Metric

Loader = Any
"""A DataLoader, a Dataset or an iterable of batches."""


@runtime_checkable
class DataModule(Protocol):
    """Owns the data of a run: labels, tokenizer, collate, and the metrics that fit them.

    Only `train` is required. The others are looked for by name:

    validation()            evaluated as `val/...`
    test()                  scored once at the end with the best weights, as `test/...`
    metrics()               torchmetrics by name, or by head: {"accuracy": Metric} or
                            {"sentiment": {"accuracy": Metric}}; see Fed
    predict(lines)          batches for `ptrain predict`, in the order of the lines, or in any
                            order with a key `line`: which of them each row is, from 0; a message
                            about one may count from `lines.first_line`, where it has that
    read_table(path)        (line, text) of each row of a file that `ptrain predict` is given, for
                            `predict`; None for a file that is read line by line
    decode(outputs, batch)  one JSON-able dict per row of a predicted batch
    describe()              one line about the data, shown when a run starts
    inexact_because         why a run on this data cannot be resumed exactly; empty, or left out,
                            if it can
    save_assets(folder)     writes what prediction needs (tokenizer, label names) into the run's
                            assets
    from_assets(settings, folder)
                            a class method: the same data module from those assets, so that a run
                            outlives the files it came from
    """

    def train(self) -> Loader:
        """What to train on."""
        ...


@dataclass(frozen=True)
class Fed:
    """A metric with its own way of being fed: `feed(outputs, batch)` gives what update takes."""

    metric: Metric
    feed: Callable[[Mapping[str, Any], Any], Sequence[Any]]
