"""A plain function as a metric: called once, with all rows of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class FunctionMetric(Metric):
    """function(logits, labels) over the rows of all batches and processes; gives one number."""

    full_state_update = False

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self._function = function
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep the rows of a batch."""
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """What the function gives for all of them."""
        value = self._function(dim_zero_cat(self.logits), dim_zero_cat(self.labels))
        try:
            return torch.as_tensor(value)
        except (RuntimeError, TypeError, ValueError):
            raise TypeError(f"the function gave a {type(value).__name__}, not a number") from None
