"""The halting loss put together from its reference passes: what runs where no kernel does."""

# N blocks, U halting units (rows, or sentences), T tokens per unit, C classes

from __future__ import annotations

import torch
from torch import Tensor

from plugin_trainer.ops.halting.autograd import HaltingFunction
from plugin_trainer.ops.halting.inputs import (
    Count,
    Settings,
    as_NUTC,
    check_pair,
    per_block,
    regularised_units,
)
from plugin_trainer.ops.halting.reference import accumulation_dtype
from plugin_trainer.ops.halting.targets import class_targets


def composed_loss(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, settings: Settings
) -> tuple[Tensor, ...]:
    """The seven fields of HaltingLoss. Raises what `halting_loss` raises."""
    check_pair(logits, halting_logits)
    tau, reduction = settings.tau, settings.reduction
    blocks, rows, units = logits.shape[0], logits.shape[1:-1], halting_logits.shape[1:]
    dtype = accumulation_dtype(logits, halting_logits)
    logits_NUTC = as_NUTC(logits, halting_logits)
    targets = class_targets(
        labels,
        logits_NUTC,
        rows=rows,
        ignore_index=settings.ignore_index,
        class_weight=settings.class_weight,
        label_smoothing=settings.label_smoothing,
        dtype=dtype,
    )
    alpha, beta, eta = settings.alpha, settings.beta, settings.eta
    out = HaltingFunction.apply(
        logits_NUTC,
        halting_logits.flatten(1),
        targets.weight_UTC,
        per_block(1.0 if alpha is None else alpha, "alpha", logits, dtype),
        per_block(0.0 if beta is None else beta, "beta", logits, dtype),
        None if eta is None else per_block(eta, "eta", logits, dtype),
    )
    task_UT, supervision_UT, regulariser_U, log_answer_UTC, p_NU, w_NU = out
    counted_U = regularised_units(settings.reg_mask, targets.labelled_UT, rows, units)
    regulariser_U = torch.where(counted_U, regulariser_U, 0.0)
    if reduction == "none":
        loss = (task_UT + supervision_UT).sum(-1).reshape(units)
        parts = task_UT.reshape(rows), supervision_UT.reshape(rows), regulariser_U.reshape(units)
    else:
        row_count, unit_count = _denominators(settings, targets.row_UT, counted_U.to(dtype))
        task_loss, supervision = task_UT.sum() / row_count, supervision_UT.sum() / row_count
        loss = task_loss + supervision
        parts = task_loss, supervision, regulariser_U.sum() / unit_count
    if tau != 0.0:
        loss = loss + tau * parts[2]
    return (
        loss,
        *parts,
        log_answer_UTC.reshape(logits.shape[1:]),
        p_NU.reshape(blocks, *units),
        w_NU.reshape(blocks, *units),
    )


def _denominators(settings: Settings, row_UT: Tensor, counted_U: Tensor) -> tuple[Count, Count]:
    normalizer = settings.normalizer
    if settings.reduction == "sum":
        return 1.0, 1.0
    if normalizer is not None:
        return normalizer if isinstance(normalizer, tuple) else (normalizer, normalizer)
    counts = row_UT.sum(), counted_U.sum()
    if settings.empty == "nan":
        return counts
    return torch.where(counts[0] == 0, 1.0, counts[0]), torch.where(counts[1] == 0, 1.0, counts[1])
