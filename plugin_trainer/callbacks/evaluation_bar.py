"""A bar for one pass over a split, which is gone when the pass is over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm

from plugin_trainer.data.evaluated import METHODS
from plugin_trainer.data.iterated import length_of
from plugin_trainer.data.sources import ROWS
from plugin_trainer.data.unbatched import is_map_style

_BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_WITHOUT_END = "{desc} {n_fmt} batches [{elapsed}]"


class EvaluationBar:
    """Counts the batches of an evaluation on the terminal, of each weight set anew.

    limited  whether the settings of the run limit how many there are
    """

    def __init__(self, *, limited: bool = True) -> None:
        self._limited = limited
        self._bar: Any = None
        self._pass: tuple[str, str] | None = None
        self._lost = False

    def ptrain_evaluation_batch_end(self, run: Any, split: str, weights: str) -> None:
        """Move on by one batch."""
        if self._lost:
            return
        try:
            self._advance(run, split, weights)
        except OSError:
            self.lose()

    def lose(self) -> None:
        """Show nothing any more: nobody reads it, and that must not end what it shows."""
        self._lost = True
        if self._bar is not None:
            self._bar.disable = True  # or it would draw itself once more when it is forgotten
        self._bar = None

    def _advance(self, run: Any, split: str, weights: str) -> None:
        if self._pass != (split, weights):
            self.close()
            self._pass = (split, weights)
            total = self._total(run, split)
            self._bar = tqdm(
                total=total,
                desc=METHODS.get(split, split) + (", average" if weights == "ema" else ""),
                bar_format=_WITHOUT_END if total is None else _BAR,
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )
        self._bar.update(1)

    def ptrain_evaluation_end(self) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, if there is one."""
        try:
            if self._bar is not None:
                self._bar.close()
        except OSError:
            self.lose()
        self._bar = self._pass = None

    def _total(self, run: Any, split: str) -> int | None:
        limits = run.settings.limit_batches
        limit = getattr(limits, METHODS.get(split, split)) if self._limited else None
        total = batches_in(run.loaders[split], limit, batch_size=run.settings.batch_size or ROWS)
        return None if total is None else -(-total // run.world.size)  # they are dealt out


def batches_in(loader: Any, limit: int | None, *, batch_size: int) -> int | None:
    """How many batches a loader, or several by name, will give; None if that is not known."""
    if isinstance(loader, Mapping):
        counts = [batches_in(its, limit, batch_size=batch_size) for its in loader.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
    if is_map_style(loader):
        loader = DataLoader(loader, batch_size=batch_size)
    return length_of(loader, limit=limit)
