"""The official score of SemEval-2010 task 8: macro F1 over the relations, direction counted.

Hendrickx et al., SemEval-2010 Task 8, 2010, section 5.2: (9+1)-way evaluation with directionality
taken into account. A relation in the wrong direction was found wrongly, and missed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from plugin_trainer.data.batches import IGNORED_LABEL

# B texts, C labels, R relations whatever their direction

DIRECTED = re.compile(r"(.+)\(e[12],e[12]\)")


def relation_types(labels: Sequence[str]) -> list[str]:
    """The relations without their directions, sorted; a label such as Other is none."""
    return sorted({found[1] for label in labels if (found := DIRECTED.fullmatch(label))})


class DirectedF1(Metric):  # type: ignore[misc]
    """F1 of each relation with both its directions together, averaged over the relations.

    labels  the label names in the order of their numbers
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right_R: Tensor
    found_R: Tensor
    there_R: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        types = relation_types(labels)
        found = [DIRECTED.fullmatch(label) for label in labels]
        # The last row of the counts is of what is no relation.
        self._type_of = torch.tensor([types.index(one[1]) if one else len(types) for one in found])
        for state in ("right_R", "found_R", "there_R"):
            counts = torch.zeros(len(types) + 1, dtype=torch.long)
            self.add_state(state, default=counts, dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Take in one batch."""
        known_B = labels_B != IGNORED_LABEL
        there_B = labels_B[known_B]
        found_B = logits_BC.argmax(dim=-1)[known_B]
        type_of, size = self._type_of.to(labels_B.device), len(self.right_R)
        self.there_R += torch.bincount(type_of[there_B], minlength=size)
        self.found_R += torch.bincount(type_of[found_B], minlength=size)
        right_B = there_B[there_B == found_B]
        self.right_R += torch.bincount(type_of[right_B], minlength=size)

    def compute(self) -> Tensor:
        """The mean over the relations; one that is neither there nor found counts as 0."""
        total_R = (self.found_R + self.there_R)[:-1]
        return (2 * self.right_R[:-1] / total_R.clamp(min=1)).mean()
