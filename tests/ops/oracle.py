"""The halting equations written down literally; autograd and float64 do the rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def literal_halting_loss(
    logits: Tensor,
    halting_logits: Tensor,
    labels: Tensor,
    *,
    tau: float,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    reg_mask: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    **cross_entropy: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, task_loss, supervision and regulariser of `halting_loss`, by the book."""
    blocks = logits.shape[0]
    y, h = logits.softmax(-1), halting_logits.sigmoid()
    p, a = torch.ones_like(h[0]), torch.zeros_like(y[0])
    regulariser = torch.zeros_like(h[0])
    for n in range(blocks):
        reaches = p.reshape(p.shape + (1,) * (a.dim() - p.dim()))
        a = y[n] * reaches + a * (1 - reaches)
        p = p * h[n]
        regulariser = regulariser + (1 if alpha is None else alpha[n]) * h[n]
        regulariser = regulariser + (0 if beta is None else beta[n]) * p
    task = _cross_entropy(a.log(), labels, **cross_entropy)
    supervision = torch.zeros_like(task)
    if eta is not None:
        every_block = labels.expand(blocks, *labels.shape)
        terms = _cross_entropy(y.log(), every_block, **cross_entropy)
        supervision = (eta.reshape(-1, *(1,) * task.dim()) * terms).sum(0)
    labelled = _labelled(labels, **cross_entropy)
    counted = labelled if reg_mask is None else reg_mask
    while counted.dim() > regulariser.dim():
        counted = counted.any(-1)
    regulariser = regulariser * counted
    if reduction == "none":
        total = task + supervision
        total = total.sum(-1) if total.dim() > regulariser.dim() else total
        return total + tau * regulariser, task, supervision, regulariser
    row_count, unit_count = 1.0, 1.0
    if reduction == "mean":
        row_count, unit_count = _row_weights(labels, labelled, **cross_entropy), counted.sum()
    if normalizer is not None:
        row_count = unit_count = normalizer
    task, supervision = task.sum() / row_count, supervision.sum() / row_count
    regulariser = regulariser.sum() / unit_count
    return task + supervision + tau * regulariser, task, supervision, regulariser


def _cross_entropy(log_q: Tensor, labels: Tensor, **options: object) -> Tensor:
    """F.cross_entropy; log q sums to one already, so its log_softmax changes nothing."""
    classes = log_q.shape[-1]
    rows = log_q.shape[:-1]
    if labels.is_floating_point():
        options.pop("ignore_index", None)
        flat = labels.reshape(-1, classes)
    else:
        flat = labels.reshape(-1)
    renamed = {"weight" if key == "class_weight" else key: value for key, value in options.items()}
    out = F.cross_entropy(log_q.reshape(-1, classes), flat, reduction="none", **renamed)
    return out.reshape(rows)


def _labelled(labels: Tensor, *, ignore_index: int = -100, **_: object) -> Tensor:
    if labels.is_floating_point():
        return torch.ones(labels.shape[:-1], dtype=torch.bool)
    return labels != ignore_index


def _row_weights(
    labels: Tensor, labelled: Tensor, *, class_weight: Tensor | None = None, **_: object
) -> Tensor:
    if class_weight is None or labels.is_floating_point():
        return labelled.sum()
    return class_weight[labels[labelled]].sum()


def exit_by_published_rule(answer: Tensor, p: Tensor, blocks_left: int) -> Tensor:
    """Eyzaguirre & Soto: stop if a* (1 - p)^d >= a_runner_up + p d."""
    best = answer.topk(2, -1).values
    return best[..., 0] * (1 - p) ** blocks_left >= best[..., 1] + p * blocks_left


def after_the_adversary(answer: Tensor, p: Tensor, blocks_left: int) -> Tensor:
    """The answer [*rows, C] after blocks that all go on (h = 1) and all vote for the runner-up."""
    vote = F.one_hot(answer.topk(2, -1).indices[..., 1], answer.shape[-1]).to(answer.dtype)
    for _ in range(blocks_left):
        answer = p[..., None] * vote + (1 - p[..., None]) * answer
    return answer
