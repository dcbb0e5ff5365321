"""The engine's own answers to the behaviour hooks: move a batch, forward, one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plugin_trainer.data.batches import count_rows, move_batch
from plugin_trainer.data.mixture import TASK
from plugin_trainer.data.share import StandIn, batch_of
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.distributed.together import Together
from plugin_trainer.training.metrics.running_mean import sum_of_means

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
    step = _Backward(run, several=_are_several(run, micro_batches))
    if run.together is None:
        step.alone(micro_batches, parameters)
        run.hooks.before_optimizer_step(run=run)
        run.grad_norm, of_all = run.update.measure(), step.outcome
    else:
        run.grad_norm, of_all = step.together(run.together, micro_batches, parameters)
        if run.hooks.sees_gradients:
            hook = partial(run.hooks.before_optimizer_step, run=run)
            run.grad_norm = run.together.measured_after(hook, run.update.measure)
    run.stopwatch.lap("forward_backward")
    if run.guard.passes(of_all, run.grad_norm, step=run.progress.step + 1):
        if run.tasks is not None:
            run.tasks.add_step([batch_of(batch) for batch in micro_batches], run.grad_norm)
        run.sound = False
        run.update.apply(run.grad_norm)
        run.schedule.step()
    else:
        run.update.skip()
    return step.outcome


def _are_several(run: Run, micro_batches: Sequence[Any]) -> bool:
    """Whether the step mixes tasks."""
    return run.tasks is not None and len({batch_of(its)[TASK] for its in micro_batches}) > 1


class _Backward:
    """The gradients of one step's micro-batches, added up.

    A loss that is a mean over its own items weighs as much as it has items: it is differentiated as
    a sum, and the gradients are divided by all items later. A micro-batch that is all of the step
    needs none of that.
    """

    def __init__(self, run: Run, *, several: bool) -> None:
        self._run = run
        self._several = several
        self._outcomes: list[StepOutcome] = []
        # Under the loss scale of fp16 a sum would overflow long before a mean does: it is counted
        # in units of the first micro-batch's items.
        self._unit: int | Tensor = 1

    def alone(self, micro_batches: Sequence[Any], parameters: Sequence[nn.Parameter]) -> None:
        """As the only process."""
        run = self._run
        for batch in micro_batches:
            outcome = self._forward(batch)
            loss = outcome.loss if len(micro_batches) == 1 else self._sum(outcome)
            (loss if run.scaler is None else run.scaler.scale(loss)).backward()
        if run.scaler is not None:
            run.scaler.unscale_(run.optimizer)
        if len(micro_batches) > 1:
            count = self.outcome.count
            with torch.no_grad():
                torch._foreach_div_(
                    [p.grad for p in parameters if p.grad is not None],
                    count if run.scaler is None else count / self._unit,
                )

    def together(
        self,
        together: Together,
        micro_batches: Sequence[Any],
        parameters: Sequence[nn.Parameter],
    ) -> tuple[Tensor, StepOutcome]:
        """With other processes: the norm of the step's gradient, and its loss over all of them."""
        run = self._run

        def weighted(batch: Any) -> tuple[StepOutcome, Tensor]:
            outcome = self._forward(batch)
            loss = self._sum(outcome)
            return outcome, loss if run.scaler is None else run.scaler.scale(loss)

        for number, batch in enumerate(micro_batches, 1):
            together.backward(partial(weighted, batch), last=number == len(micro_batches))
        if run.scaler is not None:
            run.scaler.unscale_(run.optimizer)
        norm, totals = together.finish(parameters, run.update.measure, unit=self._unit)
        return norm, StepOutcome(totals.loss, count=totals.count)

    @cached_property
    def outcome(self) -> StepOutcome:
        """That of this process's micro-batches as one."""
        return self._outcomes[0] if len(self._outcomes) == 1 else _as_one(self._outcomes)

    def _forward(self, batch: Any) -> StepOutcome:
        run = self._run
        counts, batch = not isinstance(batch, StandIn), batch_of(batch)
        moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
        outcome: StepOutcome = run.hooks.forward(run=run, batch=moved)
        if not counts:
            outcome = replace(outcome, count=0)
        elif run.tasks is not None:
            run.tasks.add(moved, outcome)
        if self._several:
            outcome = replace(outcome, count=self._rows(moved if counts else None, outcome.count))
        if run.scaler is not None and not self._outcomes:
            self._unit = self._first_count(outcome.count)
        self._outcomes.append(outcome)
        return outcome

    def _rows(self, batch: Any | None, count: int | Tensor) -> int | Tensor:
        """By how many items a batch counts in a step of several tasks: its rows.

        One task's loss is a mean over tokens, another's over rows: rows are what all have. A batch
        without an item still counts nothing, for the mean over none is NaN.
        """
        rows = count_rows(batch) if batch is not None else 0
        together = self._run.together
        if together is not None:  # all processes' rows, by this one's share of all their items
            return together.total(rows) * count / together.total(count).clamp(min=1)
        if isinstance(count, Tensor):
            return torch.where(count == 0, 0, rows)
        return rows if count else 0

    def _first_count(self, count: int | Tensor) -> int | Tensor:
        """The unit: the first micro-batch's items, at least one; of several processes, the rows of
        each, which all of them know.
        """
        if self._run.together is not None:
            return max(self._run.window.samples // self._run.world.size, 1)
        return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)

    def _sum(self, outcome: StepOutcome) -> Tensor:
        loss = outcome.loss * outcome.count
        return loss if self._run.scaler is None else loss / self._unit


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
