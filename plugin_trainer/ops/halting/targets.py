"""Turns labels of either kind into what each class weighs in torch's cross-entropy."""

# U halting units, T tokens per unit, C classes

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """What the loss needs to know of the labels.

    weight_UTC   what -log q_c is multiplied by, class weights and smoothing included; 0 if ignored
    row_UT       what a row counts in the denominator of a mean
    labelled_UT  bool, which rows have a label
    """

    weight_UTC: Tensor
    row_UT: Tensor
    labelled_UT: Tensor


def class_targets(
    labels: Tensor,
    logits_NUTC: Tensor,
    *,
    rows: torch.Size,
    ignore_index: int,
    class_weight: Tensor | None,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Targets:
    """The targets of labels of either kind.

    labels  [*rows] class numbers, or [*rows, C] probabilities

    Raises ValueError if the shape of labels or class_weight is another.
    """
    classes, shape_UT = logits_NUTC.shape[-1], logits_NUTC.shape[1:-1]
    soft = labels.is_floating_point()
    wanted = (*rows, classes) if soft else tuple(rows)
    if tuple(labels.shape) != wanted:
        kind = "probabilities" if soft else "class numbers"
        raise ValueError(f"labels have shape {tuple(labels.shape)}; as {kind} they need {wanted}")
    if class_weight is not None and class_weight.shape != (classes,):
        raise ValueError(f"class_weight has shape {tuple(class_weight.shape)}, not ({classes},)")
    if soft:
        return _soft_targets(
            labels.reshape(*shape_UT, classes),
            class_weight_C=class_weight,
            label_smoothing=label_smoothing,
            dtype=dtype,
        )
    return _hard_targets(
        labels.reshape(shape_UT),
        classes=classes,
        ignore_index=ignore_index,
        class_weight_C=class_weight,
        label_smoothing=label_smoothing,
        dtype=dtype,
    )


def _soft_targets(
    target_UTC: Tensor,
    *,
    class_weight_C: Tensor | None,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Targets:
    """Probabilities as labels; a row of zeros is ignored. A row counts 1 in a mean."""
    target_UTC = target_UTC.detach().to(dtype)
    labelled_UT = (target_UTC != 0).any(-1)
    weight_UTC = _smooth(target_UTC, label_smoothing)
    if class_weight_C is not None:
        weight_UTC = weight_UTC * class_weight_C.to(dtype)
    return Targets(weight_UTC * labelled_UT[..., None], labelled_UT.to(dtype), labelled_UT)


def _hard_targets(
    label_UT: Tensor,
    *,
    classes: int,
    ignore_index: int,
    class_weight_C: Tensor | None,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Targets:
    """Class numbers as labels. A row counts its class's weight in a mean.

    Raises IndexError for a label that is no class, on a CPU. On other devices, where looking would
    make the host wait, and in a compiled graph such a row's targets are NaN, and so is the loss.
    """
    label_UT = label_UT.to(torch.int64)
    labelled_UT = label_UT != ignore_index
    wrong_UT = labelled_UT & ((label_UT < 0) | (label_UT >= classes))
    looks = label_UT.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and bool(wrong_UT.any()):
        raise IndexError(
            f"label {label_UT[wrong_UT][0].item()} is out of range: there are {classes} classes, "
            f"numbered from 0 to {classes - 1}; rows without a label carry {ignore_index}"
        )
    safe_UT = torch.where(labelled_UT & ~wrong_UT, label_UT, 0)
    target_UTC = torch.zeros(*label_UT.shape, classes, dtype=dtype, device=label_UT.device)
    target_UTC.scatter_(-1, safe_UT[..., None], 1.0)
    weight_UTC = _smooth(target_UTC, label_smoothing)
    row_UT = labelled_UT.to(dtype)
    if class_weight_C is not None:
        class_weight_C = class_weight_C.to(dtype)
        weight_UTC = weight_UTC * class_weight_C
        row_UT = row_UT * class_weight_C[safe_UT]
    weight_UTC = weight_UTC * labelled_UT[..., None]
    weight_UTC = torch.where(wrong_UT[..., None], math.nan, weight_UTC)
    return Targets(weight_UTC, row_UT, labelled_UT)


def _smooth(target_UTC: Tensor, label_smoothing: float) -> Tensor:
    if label_smoothing == 0.0:
        return target_UTC
    return target_UTC * (1.0 - label_smoothing) + label_smoothing / target_UTC.shape[-1]
