"""The loss of a task: a mean over its labelled items, so that batches of any size add up rightly.

An item is a text. Where all heads of a task answer by token, an item is a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plugin_trainer.data.batches import IGNORED_LABEL
from plugin_trainer.early_exit.joint import block_shares
from ptrain_multitask_bert.heads import Head

# N blocks, B texts, T tokens, C labels


def task_loss(
    heads: Sequence[Head],
    *,
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    class_weights: Mapping[str, Tensor | None],
) -> dict[str, Any]:
    """Loss, parts and count of a batch of one task.

    logits, labels, class_weights  by the name of the head. A head without labels adds nothing, and
                                   is not touched by the gradient

    The loss is the sum over heads of weight * (sum of the losses of its items) / count, and `count`
    is how many items have a label of any head: a text that has none for one head is an item still.
    `parts` has a task's loss by head where it has several heads.
    """
    labelled = [head for head in heads if head.name in labels]
    by_token = all(head.kind == "tokens" for head in labelled)
    sums: dict[str, Tensor] = {}
    has_label: Tensor | None = None
    for head in labelled:
        losses, known = item_losses(
            logits[head.name],
            labels[head.name],
            kind=head.kind,
            class_weights=class_weights[head.name],
        )
        if head.kind == "tokens" and not by_token:
            # One token head among heads of whole texts: a text counts once, however long it is.
            losses, known = losses.sum(1) / known.sum(1).clamp(min=1), known.any(1)
        sums[head.name] = head.weight * losses.sum()
        has_label = known if has_label is None else has_label | known
    if has_label is None:
        return {}
    count = has_label.sum()
    divisor = count.clamp(min=1)
    loss = torch.stack(list(sums.values())).sum() / divisor
    parts = {
        head.name: sums[head.name] / divisor if head.name in sums else torch.zeros_like(loss)
        for head in heads
    }
    return {"loss": loss, "parts": parts if len(heads) > 1 else {}, "count": count}


def joint_loss(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The losses of every block's own answer as one, weighted n / sum n."""
    losses_N = torch.stack([one["loss"] for one in each])
    share_N = block_shares(len(each)).to(losses_N.device)
    return {**each[-1], "loss": (share_N * losses_N).sum()}


def item_losses(
    logits: Tensor, labels: Tensor, *, kind: str, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of each item, 0 where it has no label, and which items have one: [B] or [B, T].

    labels  class numbers, [B] or for tokens [B, T], of which -100 is none; for multi_label [B, C]
            of 0 and 1, of which -100 and NaN are none; for a regression [B], of which NaN is none
    """
    if kind == "multi_label":
        return _binary_losses(logits, labels.float(), class_weights=class_weights)
    if kind == "regression":
        return _squared_errors(logits, labels.float())
    losses = functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        weight=class_weights,
        ignore_index=IGNORED_LABEL,
        reduction="none",
    )
    return losses.view_as(labels), labels != IGNORED_LABEL


def _binary_losses(
    logits_BC: Tensor, labels_BC: Tensor, *, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean over the known labels of a text of their binary cross-entropies."""
    known_BC = ~labels_BC.isnan() & (labels_BC != IGNORED_LABEL)
    losses_BC = functional.binary_cross_entropy_with_logits(
        logits_BC, labels_BC.where(known_BC, 0.0), weight=class_weights, reduction="none"
    )
    sums_B = losses_BC.where(known_BC, 0.0).sum(-1)
    return sums_B / known_BC.sum(-1).clamp(min=1), known_BC.any(-1)


def _squared_errors(values_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    known_B = ~labels_B.isnan()
    errors_B = values_B - labels_B.where(known_B, 0.0)
    return errors_B.square().where(known_B, 0.0), known_B
