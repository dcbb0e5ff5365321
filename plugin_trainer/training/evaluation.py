"""Score a split with each weight set: mean losses, and the data module's own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.generators import seeded_generators
from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.share import StandIn, batch_of
from plugin_trainer.data.sources import ROWS
from plugin_trainer.errors import DataError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.settings import RunSettings
from plugin_trainer.training.distributed.world import World
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.metrics.evaluation_metrics import Scores
from plugin_trainer.training.metrics.numbers import make_numbers
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.optim.ema import Ema
from plugin_trainer.training.seeding import own_rng


class Scored(Protocol):
    """What an evaluation needs of a run, or of one loaded for inference."""

    settings: RunSettings
    model: nn.Module
    data: Any
    device: torch.device
    forward: Forward
    hooks: RunHooks
    world: World

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

    The values are those of all processes, and the same in each.
    """
    if "val" not in run.loaders:
        return {}
    run.hooks.evaluation_start(run=run, split="val")
    limit = run.settings.limit_batches.validation
    sets: dict[str, AbstractContextManager[None]] = {"raw": nullcontext()}
    if run.ema is not None:
        sets["ema"] = run.ema.applied()
    metrics: dict[str, float] = {}
    for weights, applied in sets.items():
        with applied:
            metrics.update(score(run, split="val", weights=weights, limit=limit))
    end_evaluation(run, "val", metrics)
    return metrics


def end_evaluation(run: Scored, split: str, metrics: dict[str, float]) -> None:
    """Let hooks add to what an evaluation gave. All processes call it, and all get what the hooks
    of the first have added.
    """
    run.hooks.evaluation_end(run=run, split=split, metrics=metrics)
    make_numbers(metrics, given_to="ptrain_evaluation_end")
    if run.world.size > 1:
        # Each process decides by these numbers (the best, the rate, the end).
        shared = run.world.from_first(dict(metrics))
        metrics.clear()
        metrics.update(shared)


def score(run: Scored, *, split: str, weights: str, limit: int | None = None) -> dict[str, float]:
    """Losses and metrics of the model with the weights it has now, over one pass of the split.

    limit  only so many batches of it, of each task where there are several

    Of several processes, each scores some of the batches. All put equally many through the model,
    for one whose weights they share works only with all of them.
    """
    scores = scores_of(run, split)
    batches = evaluation_batches(
        run.loaders[split],
        batch_size=run.settings.batch_size or ROWS,
        limit=limit,
        share=run.world.share,
    )
    empty = True
    with evaluating(*run.forward.modules), evaluation_streams(run, split):
        for batch in batches:
            empty = False
            moved = run.hooks.move_batch(run=run, batch=batch_of(batch), device=run.device)
            outcome: StepOutcome = run.hooks.forward(run=run, batch=moved)
            if isinstance(batch, StandIn):
                continue
            scores.add(moved, outcome)
            run.hooks.evaluation_batch_end(
                run=run, split=split, weights=weights, batch=moved, outcome=outcome
            )
    if empty:
        raise DataError(
            f"the data of the split '{split}' is empty", hint="check its file or loader"
        )
    prefix = split if weights == "raw" else f"{split}_{weights}"
    return {f"{prefix}/{name}": value for name, value in scores.values(run.world).items()}


def scores_of(run: Scored, split: str) -> Scores:
    """What adds up a split: fresh."""
    loader = run.loaders[split]
    return Scores(
        run.data,
        run.device,
        tasks=list(loader) if isinstance(loader, Mapping) else (),
        label=run.settings.label,
        overall=run.settings.overall,
        forward=run.forward,
    )


@contextmanager
def evaluation_streams(run: Scored, split: str) -> Iterator[None]:
    """Random streams of the split's own: the same each time, and training's stay where they are."""
    name = ("evaluation", split)
    own = seeded_generators(run.loaders[split], derive_seed(run.settings.seed, *name))
    with own_rng(run.settings.seed, *name), own:
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """The model and its loss in evaluation mode, without gradients."""
    # Of each module on its own: a user may keep some of them in evaluation mode while training.
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
