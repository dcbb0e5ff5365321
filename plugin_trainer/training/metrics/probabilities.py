"""Probabilities for the metrics that want them, from what is known to be logits."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from plugin_trainer.training.model.criterion import Activation

_SOFTMAX = {
    "MulticlassPrecisionRecallCurve",  # and what derives from it: ROC, AUROC, AveragePrecision
    "MulticlassCalibrationError",
    "MulticlassHingeLoss",
}


def for_metric(metric: Any, logits: Any, activation: Activation) -> Any:
    """The logits, as probabilities if the metric would otherwise have to guess what they are.

    torchmetrics goes by the values of each batch: it takes logits that happen to lie in [0, 1] for
    probabilities.
    """
    if not activation or not isinstance(logits, Tensor) or not logits.is_floating_point():
        return logits
    if _activation_of(metric.__class__) != activation:
        return logits
    return logits.float().sigmoid() if activation == "sigmoid" else logits.float().softmax(1)


@cache
def _activation_of(cls: type[Any]) -> Activation:
    """What a metric of torchmetrics applies to what it takes for logits."""
    for base in cls.__mro__:
        if not base.__module__.startswith("torchmetrics.classification"):
            continue
        if base.__name__ in _SOFTMAX:
            return "softmax"
        if base.__name__.startswith(("Binary", "Multilabel")):
            return "sigmoid"
    return ""
