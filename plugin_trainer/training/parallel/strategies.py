"""Which way several processes train: by replicas of the model or by shards of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugin_trainer.errors import PtrainError
from plugin_trainer.training.parallel.replicas import Replicas
from plugin_trainer.training.parallel.together import Together

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run


def make_together(run: Run) -> Together | None:
    """How the processes of a run make a step; None for the only one.

    Raises PtrainError for a run that several processes cannot make.
    """
    if run.world.size == 1:
        return None
    if whose := run.hooks.makes_steps:
        raise PtrainError(
            f"{whose} makes the whole training step itself, and does not say how several processes "
            "share it",
            hint="train it in one process",
        )
    settings = run.settings.parallel
    search = settings.unused_parameters == "search" or run.stream.is_mixture
    return Replicas(
        run.model,
        run.world,
        device=run.device,
        unused=True if search else None,
        wants_stop=lambda: run.wish is not None,
    )
