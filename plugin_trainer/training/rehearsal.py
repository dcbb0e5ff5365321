"""One batch of each split before the first step: an evaluation that cannot work fails now, and not
in hours.
"""

from __future__ import annotations

from collections.abc import Iterable

from plugin_trainer.data.dealt import may_differ
from plugin_trainer.data.digest import digest_of
from plugin_trainer.data.evaluated import evaluation_batches
from plugin_trainer.data.workers import end_kept_workers
from plugin_trainer.training.alike import refuse_other_data
from plugin_trainer.training.evaluation import evaluating, scores_of
from plugin_trainer.training.run import Run
from plugin_trainer.training.scores import Scores
from plugin_trainer.training.seeding import own_rng
from plugin_trainer.watching import watched

_ROLES = {"val": "validation"}


def rehearse(run: Run) -> None:
    """Put one batch of each split through the model and its metrics, and forget what comes of it.

    Each of several processes does it with the same batch. Raises PtrainError for what no evaluation
    could do, and for a watched metric that none would give.
    """
    several = run.world.size > 1
    scored = "val" if "val" in run.loaders else "test"
    for split, loader in run.loaders.items():
        scores = scores_of(run, split)
        batches = evaluation_batches(loader, batch_size=run.settings.batch_size, limit=1)
        with evaluating(run.model), own_rng(run.settings.seed, "evaluation", split):
            for batch in batches:
                if several and may_differ(loader):
                    role = _ROLES.get(split, split)
                    refuse_other_data(run.world, digest_of(batch), role=role)
                moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
                outcome = run.hooks.forward(run=run, batch=moved)
                scores.add(moved, outcome)
                if several:
                    scores.check_merging(moved, outcome)
        if several:
            end_kept_workers(loader)  # an evaluation has others, which load a share
        scores.check_names()
        if split == scored:
            scores.check_overall()
        if split == "val":
            _check_watched(run, scores)


def _check_watched(run: Run, scores: Scores) -> None:
    if run.hooks.may_add_metrics or not scores.names:
        return  # only the first evaluation will tell
    prefixes: Iterable[str] = ("val",) if run.ema is None else ("val", "val_ema")
    known = {f"{prefix}/{name}": 0.0 for prefix in prefixes for name in scores.names}
    for setting, name in run.watched:
        watched(known, name, setting=setting)
