"""The engine's own answers to the behaviour hooks: move a batch, forward, one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import count_rows, move_batch
from plugin_trainer.data.mixture import TASK
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.meter import sum_of_means

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


def ptrain_move_batch(run: Run, batch: Any, device: torch.device) -> Any:
    """Move every tensor of the batch."""
    del run
    return move_batch(batch, device)


def ptrain_forward(run: Run, batch: Any) -> StepOutcome:
    """Call the model under the run's precision."""
    with run.precision.autocast():
        return run.forward(batch)


def ptrain_train_step(run: Run, micro_batches: Sequence[Any]) -> StepOutcome:
    """Gradients of all micro-batches as of one big batch, then clip, optimizer, schedule,
    average.
    """
    # Until the optimizer moves, an error leaves the weights as the last step left them.
    run.sound = True
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    outcome, divisor = _backward(run, micro_batches)
    if divisor is not None:
        with torch.no_grad():
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], divisor)
    run.grad_norm = run.update.measure()
    run.stopwatch.lap("forward_backward")
    if run.guard.passes(outcome, run.grad_norm, step=run.progress.step + 1):
        if run.tasks is not None:
            run.tasks.add_step(micro_batches, run.grad_norm)
        run.sound = False
        run.update.apply(run.grad_norm)
        run.schedule.step()
    else:
        run.update.skip()
    return outcome


def _backward(
    run: Run, micro_batches: Sequence[Any]
) -> tuple[StepOutcome, int | float | Tensor | None]:
    """The outcome of all micro-batches, and what their gradients are still to be divided by."""
    outcomes: list[StepOutcome] = []
    unit: int | Tensor = 1
    several = run.tasks is not None and len({batch[TASK] for batch in micro_batches}) > 1
    for batch in micro_batches:
        moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
        outcome: StepOutcome = run.hooks.forward(run=run, batch=moved)
        if run.tasks is not None:
            run.tasks.add(moved, outcome)
        if several:
            outcome = replace(outcome, count=_rows(moved, outcome.count))
        outcomes.append(outcome)
        if run.scaler is not None and len(outcomes) == 1:
            count = outcome.count
            unit = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        _differentiate(run, outcome, alone=len(micro_batches) == 1, unit=unit)
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
    if len(outcomes) == 1:
        return outcomes[0], None
    whole = _as_one(outcomes)
    return whole, whole.count if run.scaler is None else whole.count / unit


def _rows(batch: Any, count: int | Tensor) -> int | Tensor:
    """By how many items a batch counts in a step of several tasks: its rows.

    One task's loss is a mean over tokens, another's over rows: rows are what all have. A batch
    without an item still counts nothing, for the mean over none is NaN.
    """
    rows = count_rows(batch)
    if isinstance(count, Tensor):
        return torch.where(count == 0, 0, rows)
    return rows if count else 0


def _differentiate(run: Run, outcome: StepOutcome, *, alone: bool, unit: int | Tensor) -> None:
    # A mean over its own items weighs as much as it has items: the sum is divided by all of them
    # later.
    loss = outcome.loss if alone else outcome.loss * outcome.count
    if run.scaler is not None:
        # Under the loss scale a sum would overflow long before a mean does: it is counted in units
        # of the first micro-batch.
        loss = run.scaler.scale(loss if alone else loss / unit)
    loss.backward()


def _as_one(outcomes: Sequence[StepOutcome]) -> StepOutcome:
    """The outcome of the big batch that the micro-batches make up; outputs are not joined."""

    def mean(name: str, tables: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Over the micro-batches that have it."""
        having = [i for i, table in enumerate(tables) if name in table]
        total, count = sum_of_means(
            [tables[i][name].detach() for i in having], [outcomes[i].count for i in having]
        )
        return total / count

    def means(tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: mean(name, tables) for name in names}

    return StepOutcome(
        loss=mean("loss", [{"loss": outcome.loss} for outcome in outcomes]),
        parts=means([outcome.parts for outcome in outcomes]),
        count=sum(outcome.count for outcome in outcomes),
        metrics=means([outcome.metrics for outcome in outcomes]),
    )
