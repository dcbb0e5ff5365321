"""The engine's own answers to the behaviour hooks: move a batch, forward, one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.data.batches import IGNORED_LABEL, move_batch
from plugin_trainer.errors import NonFiniteError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.meter import weighted

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


def ptrain_move_batch(batch: Any, device: torch.device) -> Any:
    """Move every tensor of the batch."""
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
    run.optimizer.zero_grad(set_to_none=True)
    outcomes = [_backward(run, batch, alone=len(micro_batches) == 1) for batch in micro_batches]
    outcome = outcomes[0] if len(outcomes) == 1 else _as_one(outcomes)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    if len(outcomes) > 1:
        _divide(parameters, outcome.count)
    run.grad_norm = _clip(parameters, max_norm=run.settings.optimizer.max_grad_norm)
    _refuse_non_finite(outcome, run.grad_norm, step=run.progress.step + 1)
    run.sound = False
    run.optimizer.step()
    run.schedule.step()
    if run.ema is not None:
        run.ema.update()
    return outcome


def _backward(run: Run, batch: Any, *, alone: bool) -> StepOutcome:
    moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
    outcome: StepOutcome = run.hooks.forward(run=run, batch=moved)
    # A mean over its own items weighs as much as it has items: the sum is divided by all of them
    # later.
    loss = outcome.loss if alone else outcome.loss * outcome.count
    loss.backward()
    return outcome


def _as_one(outcomes: Sequence[StepOutcome]) -> StepOutcome:
    """The outcome of the big batch that the micro-batches make up; outputs are not joined."""
    counts = [outcome.count for outcome in outcomes]

    def means(tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The mean of each name, over the micro-batches that have it."""
        return {
            name: _mean([(t[name], n) for t, n in zip(tables, counts, strict=True) if name in t])
            for name in dict.fromkeys(name for table in tables for name in table)
        }

    return StepOutcome(
        loss=_mean([(outcome.loss, outcome.count) for outcome in outcomes]),
        parts=means([outcome.parts for outcome in outcomes]),
        count=sum(counts),
        metrics=means([outcome.metrics for outcome in outcomes]),
    )


def _mean(counted: Sequence[tuple[Tensor, Any]]) -> Tensor:
    """The mean over all items of means over some."""
    sums = [weighted(mean.detach(), count) for mean, count in counted]
    return torch.stack(sums).sum() / sum(count for _, count in counted)


@torch.no_grad()
def _divide(parameters: Sequence[Tensor], count: int | Tensor) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_div_(gradients, count)


def _clip(parameters: Sequence[Tensor], *, max_norm: float) -> Tensor:
    """Scale the gradients down to the norm, unless it is 0; the norm before, not read."""
    if max_norm > 0:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _refuse_non_finite(outcome: StepOutcome, grad_norm: Tensor, *, step: int) -> None:
    """Stop before the weights are touched. Costs the one host read of a step."""
    if torch.isfinite(grad_norm + outcome.loss.detach()).item():
        return
    loss, norm = outcome.loss.item(), grad_norm.item()
    if not int(outcome.count):
        raise NonFiniteError(
            f"step {step}: no item of its batch has a label, so there is no loss",
            metrics={"train/loss": loss, "train/grad_norm": norm},
            hint=f"every label is {IGNORED_LABEL}; leave such samples out of the training data",
        )
    raise NonFiniteError(
        f"step {step}: the loss is {loss:g} and the gradient norm {norm:g}",
        metrics={"train/loss": loss, "train/grad_norm": norm},
        hint=[
            "the step was not applied; the weights are those of the step before",
            "try a lower optimizer.learning_rate, a longer schedule.warmup, or "
            "optimizer.max_grad_norm = 1.0",
        ],
    )
