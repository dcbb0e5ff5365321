"""From what every block answers on some rows to a calibration: a map, and certified levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap, differs_from_last, fit_agreement
from plugin_trainer.early_exit.calibration import Calibration
from plugin_trainer.early_exit.certify import Certified, certify
from plugin_trainer.early_exit.tolerance import ToleranceMap, fit_tolerance, is_outside
from plugin_trainer.errors import PtrainError

# N blocks, B rows, T tokens of a row, C classes

PROMISES = (0.01, 0.02)
"""What is certified where nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class BlockAnswers:
    """What every block answers on some rows.

    logits_NBC  class logits [N, B, C], of sentences [N, B, T, C]; of a regression numbers [N, B]
    valid_BT    which tokens of sentences count; None: all of them
    tolerance   of a regression: how far a number may be from the last block's
    """

    logits_NBC: Tensor
    valid_BT: Tensor | None = None
    tolerance: float | None = None

    def rows(self, chosen_B: Tensor) -> BlockAnswers:
        """The chosen rows alone."""
        valid_BT = self.valid_BT[chosen_B] if self.valid_BT is not None else None
        return replace(self, logits_NBC=self.logits_NBC[:, chosen_B], valid_BT=valid_BT)

    def fitted(self) -> AgreementMap | ToleranceMap:
        """The map that fits these rows; of sentences, their valid tokens."""
        if self.tolerance is not None:
            return fit_tolerance(self.logits_NBC, self.tolerance)
        if self.logits_NBC.dim() == 3:
            return fit_agreement(self.logits_NBC)
        return fit_agreement(self.logits_NBC[:, _all_if_none(self.valid_BT, self.logits_NBC)])

    def scores(self, fitted: AgreementMap | ToleranceMap) -> Tensor:
        """The score of every block, [N, B]."""
        if isinstance(fitted, ToleranceMap):
            return fitted.scores(self.logits_NBC)
        return fitted.scores(self.logits_NBC, self.valid_BT)

    def differs(self) -> Tensor:
        """Whether a block's answer is not that of the last block, [N, B]."""
        if self.tolerance is not None:
            return is_outside(self.logits_NBC, self.tolerance)
        return differs_from_last(self.logits_NBC, self.valid_BT)


def _all_if_none(valid_BT: Tensor | None, logits_NBTC: Tensor) -> Tensor:
    if valid_BT is not None:
        return valid_BT
    return torch.ones(logits_NBTC.shape[1:3], dtype=torch.bool, device=logits_NBTC.device)


def join(parts: Sequence[BlockAnswers]) -> BlockAnswers:
    """The rows of all parts; sentences are padded to the longest."""
    if parts[0].logits_NBC.dim() < 4:
        return replace(parts[0], logits_NBC=torch.cat([part.logits_NBC for part in parts], 1))
    longest = max(part.logits_NBC.shape[2] for part in parts)
    logits, valid = [], []
    for part in parts:
        missing = longest - part.logits_NBC.shape[2]
        logits.append(F.pad(part.logits_NBC, (0, 0, 0, missing)))
        valid.append(F.pad(_all_if_none(part.valid_BT, part.logits_NBC), (0, missing)))
    return replace(parts[0], logits_NBC=torch.cat(logits, 1), valid_BT=torch.cat(valid))


def fit(
    answers: BlockAnswers,
    *,
    precision: str,
    rows_sha256: str,
    promises: Sequence[float] = PROMISES,
    confidence: float = 0.95,
    apart: bool = False,
) -> tuple[Calibration, list[PtrainError]]:
    """Fit the map and certify the promises; gives the calibration and why some could not be made.

    apart  fit on every third row and certify on the others: then the promise is exact

    Raises PtrainError for rows that cannot be used.
    """
    count = answers.logits_NBC.shape[1]
    fitted_B = torch.arange(count) % 3 == 0
    fitted = (answers.rows(fitted_B) if apart else answers).fitted()
    testing = answers.rows(~fitted_B) if apart else answers
    differs_NB, scores_NB = testing.differs(), testing.scores(fitted)
    certified: list[Certified] = []
    refused: list[PtrainError] = []
    for promise in sorted(promises):
        try:
            found = certify(differs_NB, scores_NB, max_disagreement=promise, confidence=confidence)
        except PtrainError as error:
            refused.append(error)
        else:
            certified.append(found)
    calibration = Calibration(
        agreement_map=fitted,
        precision=precision,
        rows=count,
        rows_sha256=rows_sha256,
        apart=apart,
        certified=tuple(certified),
    )
    return calibration, refused
