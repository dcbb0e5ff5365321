"""What one forward pass, or one optimizer step, gives back to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class StepOutcome:
    """The loss of a batch and what it is made of. Tensors stay on the device.

    loss     0-dim tensor, a mean over `count` items: what is differentiated
    parts    named 0-dim tensors that add up to the loss, so that the task loss is reported apart
             from its regularisers: {"task_loss": ..., "halting": ...}. Empty if it has one part
    count    how many items (samples, or valid tokens) the loss is a mean over: int or 0-dim tensor
    metrics  named 0-dim tensors to be logged and averaged beside the loss, weighted by `count`
    outputs  what metrics and callbacks of an evaluation need: {"logits": [B, C], ...}
    """

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    count: int | Tensor = 1
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
