"""How far a run is. The one clock is the count of completed optimizer steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugin_trainer.data.stream import Window


@dataclass
class Progress:
    """What is done. All zero before the first step.

    step     optimizer steps completed
    epoch    the epoch that the last step belonged to, counted from 0
    batch    batches consumed of that epoch
    samples  samples trained on
    completed_epochs  epochs of which the last batch is consumed
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    completed_epochs: int = 0

    def begin_epoch(self, number: int) -> None:
        """Stand at the beginning of an epoch."""
        self.epoch, self.batch = number, 0

    def advance(self, window: Window, *, samples: int) -> None:
        """Count a window of so many samples whose step is done."""
        self.step += 1
        self.epoch, self.batch = window.epoch, window.batch
        self.samples += samples
        self.completed_epochs = window.epoch + window.last

    def state_dict(self) -> dict[str, int]:
        """The counts as JSON values."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counts back."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, int(state.get(field.name, 0)))
