"""Every rule of early exit over all its settings, replayed on logits that are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.inference import replay
from plugin_trainer.early_exit.rules import (
    AgreementLevel,
    Certificate,
    Entropy,
    ExitRule,
    Patience,
)
from ptrain_dactbert.block_logits import BlockLogits

# N blocks that answer, R rows of a split, C classes, K scores of all rows and blocks

RULES = {
    "agreement": "estimated agreement",
    "entropy": "entropy",
    "patience": "patience",
    "delta": "DACT delta",
}
"""The knob of --exit, and its relatives."""

_SETTINGS = 200
"""How many levels and thresholds are tried: between two, less than a twentieth of a block."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What happens to each row by a rule; between two settings these are expectations.

    block_R    after which it leaves
    correct_R  whether its answer is the label
    last_R     whether it is the last block's answer
    own_R      whether it is the answer of the same rule after all blocks
    """

    block_R: Tensor
    correct_R: Tensor
    last_R: Tensor
    own_R: Tensor

    @property
    def blocks(self) -> float:
        """The mean block after which rows leave."""
        return float(self.block_R.double().mean())

    def summary(self) -> dict[str, float]:
        """The means over the rows."""
        return {
            "blocks": self.blocks,
            "accuracy": float(self.correct_R.double().mean()),
            "agreement": float(self.last_R.double().mean()),
            "own_agreement": float(self.own_R.double().mean()),
        }


@dataclass(frozen=True, eq=False)
class Point:
    """A setting of a rule, and what it does."""

    setting: float
    answers: Answers


def answers_by(rule: ExitRule, rows: BlockLogits) -> Answers:
    """What a rule does with labelled rows."""
    assert rows.labels_B is not None
    exits, full_RC = replay(rule, rows.logits_NBC, rows.halting_NB)
    answer_R = exits.answer_BC.argmax(-1)
    return Answers(
        block_R=exits.block_B,
        correct_R=answer_R.eq(rows.labels_B),
        last_R=answer_R.eq(rows.logits_NBC[-1].argmax(-1)),
        own_R=answer_R.eq(full_RC.argmax(-1)),
    )


def after_block(rows: BlockLogits, block: int) -> Answers:
    """Every row answered after one block, counted from 1."""
    assert rows.labels_B is not None
    answer_R, last_R = rows.logits_NBC[block - 1].argmax(-1), rows.logits_NBC[-1].argmax(-1)
    same_R = answer_R.eq(last_R)
    return Answers(torch.full_like(answer_R, block), answer_R.eq(rows.labels_B), same_R, same_R)


def accumulated(rows: BlockLogits) -> Answers | None:
    """Every row answered by the mixture of all blocks' answers, if the units learn to halt."""
    if rows.halting_NB is None:
        return None
    _, full_RC = replay(Certificate(), rows.logits_NBC, rows.halting_NB)
    last = after_block(rows, len(rows.logits_NBC))
    answer_R = full_RC.argmax(-1)
    same_R = answer_R.eq(rows.logits_NBC[-1].argmax(-1))
    return Answers(last.block_R, answer_R.eq(rows.labels_B), same_R, torch.ones_like(same_R))


def sweep(name: str, rows: BlockLogits, agreement_map: AgreementMap) -> list[Point]:
    """A rule over its settings, the one that leaves earliest first; empty if it has none here."""
    points = [
        Point(setting, answers_by(rule, rows))
        for setting, rule in _settings(name, rows, agreement_map)
    ]
    return sorted(points, key=lambda point: point.answers.blocks)


def _settings(
    name: str, rows: BlockLogits, agreement_map: AgreementMap
) -> Iterator[tuple[float, ExitRule]]:
    logits_NBC = rows.logits_NBC
    if name == "agreement":
        scores_K = agreement_map.scores(logits_NBC)[:-1].flatten()
        for level in [*_spaced(scores_K), float(scores_K.max()) + 1]:
            yield level, AgreementLevel(agreement_map, level)
    elif name == "entropy":
        # As the rule computes it, so that a row is within the threshold that is its own entropy.
        log_probs_NBC = logits_NBC[:-1].log_softmax(-1)
        entropies_K = -(log_probs_NBC.exp() * log_probs_NBC).sum(-1).flatten()
        for threshold in [-1.0, *_spaced(entropies_K)]:
            yield threshold, Entropy(threshold)
    elif name == "patience":
        for patience in range(1, len(logits_NBC) + 1):
            yield patience, Patience(patience)
    elif name == "delta" and rows.halting_NB is not None:
        for twentieth in range(21):
            yield twentieth / 20, Certificate(delta=twentieth / 20)


def _spaced(scores_K: Tensor) -> list[float]:
    """The scores themselves, or as many that have equally many others between them."""
    ordered_K = scores_K.unique()
    places = torch.linspace(0, len(ordered_K) - 1, min(_SETTINGS, len(ordered_K))).long()
    values: list[float] = ordered_K[places].tolist()
    return values


def at_depth(points: Sequence[Point], blocks: float) -> Answers | None:
    """What a rule does at a mean block; None where no setting reaches it.

    Between two settings each row is given to one of them by chance, in the proportion that makes
    the mean block exactly this one. So rules with few settings can be compared with all others.
    """
    for point in points:
        if abs(point.answers.blocks - blocks) < 1e-9:
            return point.answers
    for earlier, later in pairwise(points):
        low, high = earlier.answers.blocks, later.answers.blocks
        if low < blocks < high:
            return _mixed(earlier.answers, later.answers, share=(blocks - low) / (high - low))
    return None


def _mixed(one: Answers, other: Answers, *, share: float) -> Answers:
    def mix(one_R: Tensor, other_R: Tensor) -> Tensor:
        return (1 - share) * one_R.double() + share * other_R.double()

    return Answers(
        mix(one.block_R, other.block_R),
        mix(one.correct_R, other.correct_R),
        mix(one.last_R, other.last_R),
        mix(one.own_R, other.own_R),
    )


def depths_to_compare(num_blocks: int) -> list[float]:
    """At 1.5, 2.0, 2.5 and 3.0 blocks of 6, and in proportion of more or fewer."""
    depths = (round(num_blocks * of_six / 6, 2) for of_six in (1.5, 2.0, 2.5, 3.0))
    return [depth for depth in depths if 1 <= depth < num_blocks]
