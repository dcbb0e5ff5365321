"""Score the test split once, at the very end, with the best weights of each set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from plugin_trainer.training.checkpointing.store import read_model_state
from plugin_trainer.training.distributed.sharding import fitted
from plugin_trainer.training.evaluation import end_evaluation, score
from plugin_trainer.training.run import Run


def score_test_split(run: Run) -> dict[str, float]:
    """test/... with the best raw weights and test_ema/... with the best EMA weights.

    Where there is no best (nothing was evaluated), the last weights are scored. The model has its
    last weights again afterwards. Empty if the data has no test split.
    """
    if "test" not in run.loaders:
        return {}
    run.hooks.evaluation_start(run=run, split="test")
    metrics: dict[str, float] = {}
    sets = {"raw": "best"} if run.ema is None else {"raw": "best", "ema": "best_ema"}
    for weights, pointer in sets.items():
        which = pointer if run.store.pointer(pointer) is not None else "last"
        state = read_model_state(run.store.find(which).path, weights=weights)
        with _holding(run.model, state):
            limit = run.settings.limit_batches.test
            metrics.update(score(run, split="test", weights=weights, limit=limit))
    end_evaluation(run, "test", metrics)
    return metrics


@contextmanager
def _holding(model: nn.Module, state: Mapping[str, Any]) -> Iterator[None]:
    """The model holds this state inside and its own again afterwards, whatever happens."""
    own = {
        name: value.clone() if isinstance(value, Tensor) else deepcopy(value)
        for name, value in model.state_dict().items()
        if name in state
    }
    try:
        model.load_state_dict(fitted(state, model), strict=False)
        yield
    finally:
        model.load_state_dict(own, strict=False)
