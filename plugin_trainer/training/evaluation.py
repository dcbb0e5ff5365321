"""Score a split with each weight set: mean losses, and the data module's own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plugin_trainer.data.batches import find_labels
from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.module import Fed
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.settings import RunSettings
from plugin_trainer.training.ema import Ema
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.meter import Meter
from plugin_trainer.training.seeding import own_rng


class Scored(Protocol):
    """What an evaluation needs of a run, or of one loaded for inference."""

    settings: RunSettings
    model: nn.Module
    data: Any
    device: torch.device
    hooks: RunHooks

    @property
    def loaders(self) -> Mapping[str, Any]:
        """The loader of each split."""
        ...

    @property
    def ema(self) -> Ema | None:
        """The moving average of the weights, if there is one beside them."""
        ...


def evaluate(run: Scored) -> dict[str, float]:
    """Every metric of the validation split, for the raw and, if there are any, the EMA weights.

    Named val/... and val_ema/.... Draws from random streams of its own, so that training after an
    evaluation is the same as training without one, and leaves the model in training mode. Empty if
    there is no such split.
    """
    if "val" not in run.loaders:
        return {}
    limit = run.settings.limit_batches.validation
    sets: dict[str, AbstractContextManager[None]] = {"raw": nullcontext()}
    if run.ema is not None:
        sets["ema"] = run.ema.applied()
    metrics: dict[str, float] = {}
    for weights, applied in sets.items():
        with applied:
            metrics.update(score(run, split="val", weights=weights, limit=limit))
    run.hooks.evaluation_end(run=run, metrics=metrics)
    return metrics


def score(run: Scored, *, split: str, weights: str, limit: int | None = None) -> dict[str, float]:
    """Losses and metrics of the model with the weights it has now, over one pass of the split.

    limit  only so many batches of it
    """
    meter = Meter()
    metrics = build_metrics(run.data, run.device, label=run.settings.label)
    batches = evaluation_batches(
        run.loaders[split], batch_size=run.settings.batch_size, limit=limit
    )
    empty = True
    with _evaluating(run.model), own_rng(run.settings.seed, "evaluation", split):
        for batch in batches:
            empty = False
            moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
            outcome: StepOutcome = run.hooks.forward(run=run, batch=moved)
            meter.add(outcome)
            for name, fed in metrics.items():
                fed.metric.update(*_arguments(name, fed, outcome, moved))
            run.hooks.evaluation_batch_end(
                run=run, split=split, weights=weights, batch=moved, outcome=outcome
            )
    if empty:
        raise DataError(
            f"the data of the split '{split}' is empty", hint="check its file or loader"
        )
    scores = {**meter.means(), **{name: _number(fed) for name, fed in metrics.items()}}
    prefix = split if weights == "raw" else f"{split}_{weights}"
    return {f"{prefix}/{name}": value for name, value in scores.items()}


def rehearse(run: Scored) -> None:
    """Put one batch of each split through the model and its metrics, and forget what comes of it.

    Before the first step, so that an evaluation that cannot work fails now and not in hours.
    """
    for split, loader in run.loaders.items():
        metrics = build_metrics(run.data, run.device, label=run.settings.label)
        batches = evaluation_batches(loader, batch_size=run.settings.batch_size, limit=1)
        with _evaluating(run.model), own_rng(run.settings.seed, "evaluation", split):
            for batch in batches:
                moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
                outcome = run.hooks.forward(run=run, batch=moved)
                for name, fed in metrics.items():
                    fed.metric.update(*_arguments(name, fed, outcome, moved))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Of each module on its own: a user may keep some of them in evaluation mode while training.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def build_metrics(data: Any, device: torch.device, *, label: str = "") -> dict[str, Fed]:
    """The data module's metrics, fresh, on the device, by flat name: "accuracy" or
    "<head>/accuracy".
    """
    offered: Mapping[str, Any] = data.metrics() if hasattr(data, "metrics") else {}
    flat: dict[str, Fed] = {}
    for name, value in offered.items():
        if isinstance(value, Mapping):
            for inner, metric in value.items():
                flat[f"{name}/{inner}"] = _fed(metric, head=name, label=label)
        else:
            flat[name] = _fed(value, head="", label=label)
    for fed in flat.values():
        fed.metric.to(device)
        fed.metric.reset()
    return flat


def _fed(metric: Any, *, head: str, label: str) -> Fed:
    if isinstance(metric, Fed):
        return metric
    return Fed(metric, feed=partial(_logits_and_labels, head=head, label=label))


def _logits_and_labels(
    outputs: Mapping[str, Any], batch: Any, *, head: str, label: str
) -> tuple[Any, Any]:
    """The usual feed of a metric: the logits and the labels, of one head if there are several."""
    found = find_labels(batch, key=label)
    if found is None or "logits" not in outputs:
        missing = "labels in the batch" if found is None else "logits among the outputs"
        raise PtrainError(
            f"it cannot be fed: there are no {missing}",
            hint="give it as Fed(metric, feed=lambda outputs, batch: (predictions, targets))",
        )
    logits, labels = outputs["logits"], found[1]
    if head and isinstance(logits, Mapping):
        logits = logits[head]
    if head and isinstance(labels, Mapping):
        labels = labels[head]
    return logits, labels


def _arguments(name: str, fed: Fed, outcome: StepOutcome, batch: Any) -> tuple[Any, ...]:
    try:
        return tuple(fed.feed(outcome.outputs, batch))
    except PtrainError as error:
        raise PtrainError(f"metric '{name}': {error.message}", hint=error.hint) from None


def _number(fed: Fed) -> float:
    value = fed.metric.compute()
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    raise PtrainError(
        f"the metric {type(fed.metric).__name__} computes {type(value).__name__}, not one number",
        hint="use average='macro' or 'micro', or give one metric a number",
    )
