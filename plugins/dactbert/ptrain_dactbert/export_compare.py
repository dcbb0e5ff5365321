"""Compare exported segments with the run they are from, on the rows of its validation split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.early_exit.agreement import AgreementMap, at_block, first_exit
from plugin_trainer.errors import PtrainError
from ptrain_dactbert.block_logits import BlockLogits

# N blocks, B rows, C classes


@dataclass(frozen=True)
class Exits:
    """A map and a level of it: where rows leave. No level: after the last block."""

    agreement_map: AgreementMap | None
    level: float | None

    def blocks(self, logits_NBC: Tensor) -> Tensor:
        """The block [B] after which each row leaves, from 1."""
        num_blocks, num_rows, _ = logits_NBC.shape
        if self.agreement_map is None or self.level is None:
            return torch.full((num_rows,), num_blocks)
        return first_exit(self.agreement_map.scores(logits_NBC), self.level)


@dataclass(frozen=True)
class Comparison:
    """An export beside its run; shares of the rows.

    exit_agreement       same answer as the run where it leaves, by its own calibration; None if it
                         has none
    same_exit            leaves after the same block as the run does; None as well
    last_block_agreement same answer at the exit as the run at full depth
    full_agreement       same answer at full depth as the run at full depth
    max_difference       of a probability, over all blocks
    accuracy             of the run at full depth, the export at full depth, and at the exit; None
                         without labels
    """

    rows: int
    exit_agreement: float | None
    same_exit: float | None
    last_block_agreement: float
    full_agreement: float
    max_difference: float
    mean_block: float
    accuracy: tuple[float, float, float] | None

    def check(self, max_loss: float | None) -> None:
        """Raise PtrainError where the export loses more accuracy than that."""
        if max_loss is None:
            return
        if self.accuracy is None:
            raise PtrainError(
                "the validation rows have no labels, so the loss of accuracy is not known",
                hint="name labelled rows, --set data_settings.validation=FILE; or leave out "
                "--max-loss",
            )
        run, full, at_exit = self.accuracy
        if run - min(full, at_exit) > max_loss:
            raise PtrainError(
                f"the export loses {run - min(full, at_exit):.2%} of accuracy, and at most "
                f"{max_loss:.2%} were asked for: the run has {run:.4f} at full depth, the export "
                f"{full:.4f} at full depth and {at_exit:.4f} at its exits",
                hint="ask for a stricter exit or --exit off, leave out --int8, or allow more",
            )

    def as_json(self, *, exit_: str) -> dict[str, Any]:
        """The comparison for exits.json."""
        return {"exit": exit_, **asdict(self)}


def compare(
    rows: BlockLogits, logits_NBC: Tensor, *, run_exits: Exits | None, exits: Exits
) -> Comparison:
    """Compare the logits of all segments with the run's, of the same rows."""
    run_NBC, block_B = rows.logits_NBC, exits.blocks(logits_NBC)
    run_answers_NB, answers_NB = run_NBC.argmax(-1), logits_NBC.argmax(-1)
    answer_B = at_block(answers_NB, block_B)
    exit_agreement = same_exit = None
    if run_exits is not None:
        run_block_B = run_exits.blocks(run_NBC)
        exit_agreement = _share(answer_B == at_block(run_answers_NB, run_block_B))
        same_exit = _share(block_B == run_block_B)
    accuracy = None
    if rows.labels_B is not None:
        judged = (run_answers_NB[-1], answers_NB[-1], answer_B)
        run, full, at_exit = (_share(given_B == rows.labels_B) for given_B in judged)
        accuracy = (run, full, at_exit)
    return Comparison(
        rows=len(block_B),
        exit_agreement=exit_agreement,
        same_exit=same_exit,
        last_block_agreement=_share(answer_B == run_answers_NB[-1]),
        full_agreement=_share(answers_NB[-1] == run_answers_NB[-1]),
        max_difference=float((run_NBC.softmax(-1) - logits_NBC.softmax(-1)).abs().max()),
        mean_block=float(block_B.double().mean()),
        accuracy=accuracy,
    )


def _share(values_B: Tensor) -> float:
    return float(values_B.double().mean())


def report(comparison: Comparison, *, exit_: str, num_blocks: int) -> list[str]:
    """The comparison, a line each."""
    facts = []
    if comparison.exit_agreement is not None:
        facts.append(
            (f"{comparison.exit_agreement:.2%}", f"answers as the run's by --exit {exit_}")
        )
        facts.append((f"{comparison.same_exit:.2%}", "leave after the same block as in the run"))
    facts += [
        (f"{comparison.full_agreement:.2%}", "answers at full depth as the run's at full depth"),
        (
            f"{comparison.last_block_agreement:.2%}",
            f"by --exit {exit_}, {comparison.mean_block:.2f} of {num_blocks} blocks, as the run's "
            "at full depth",
        ),
        (f"{comparison.max_difference:.1e}", "largest difference of a probability"),
    ]
    if comparison.accuracy is not None:
        run, full, exit_accuracy = comparison.accuracy
        facts.append((f"{run:.4f}", "accuracy of the run at full depth"))
        facts.append((f"{full:.4f}", "accuracy of the export at full depth"))
        facts.append((f"{exit_accuracy:.4f}", f"accuracy of the export by --exit {exit_}"))
    return [f"  {value:>8}  {what}" for value, what in facts]
