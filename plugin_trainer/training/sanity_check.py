"""One batch of each split before the first step: an evaluation that cannot work fails now, and not
in hours.
"""

from __future__ import annotations

from math import isclose
from typing import Any

from plugin_trainer.data.batches import move_batch
from plugin_trainer.data.dealt import may_differ
from plugin_trainer.data.digest import digest_of
from plugin_trainer.data.evaluated import METHODS, evaluation_batches
from plugin_trainer.data.rows import take_rows
from plugin_trainer.data.share import Share, StandIn
from plugin_trainer.data.sources import ROWS
from plugin_trainer.data.workers import end_kept_workers
from plugin_trainer.errors import PtrainError
from plugin_trainer.training.distributed.same_data import refuse_other_data
from plugin_trainer.training.evaluation import evaluating, evaluation_streams, scores_of
from plugin_trainer.training.metrics.evaluation_metrics import Scores
from plugin_trainer.training.model.criterion import not_a_mean
from plugin_trainer.training.run import Run
from plugin_trainer.watching import watched


def rehearse(run: Run) -> list[str]:
    """Put one batch of each split through the model and its metrics, and forget what comes of it;
    the names of what an evaluation will give.

    Each of several processes does it with the same batches. Raises PtrainError for what no
    evaluation could do.
    """
    scored = "val" if "val" in run.loaders else "test"
    given: list[str] = []
    for split in run.loaders:
        scores = _rehearsed(run, split, limit=1)
        scores.check_names()
        scores.check_numbers()
        if split == scored:
            scores.check_overall()
        if split == "val":
            given = _given(run, scores)
            if _missing(run, given):  # other batches may have what this one has not
                limit = run.settings.limit_batches.validation
                given = _given(run, _rehearsed(run, split, limit=limit))
    return given


def check_watched(run: Run, given: list[str]) -> None:
    """Raise PtrainError for a watched metric that is not among those that evaluations give, unless
    only they can tell, and for any in a run without evaluations.
    """
    if run.watched and "val" not in run.loaders:
        setting, name = run.watched[0]
        error = PtrainError(
            f"{setting}: '{name}' is a metric of evaluations, and the run has no validation data",
            hint=f"give it validation data, or leave out {setting.partition('.')[0]}",
        )
        error.told = True  # each process finds it, and one says so
        raise error
    for setting, name in _missing(run, given):
        try:
            watched(dict.fromkeys(given, 0.0), name, setting=setting)
        except PtrainError as error:
            error.told = True  # each process finds it, and one says so
            raise


def _rehearsed(run: Run, split: str, *, limit: int | None) -> Scores:
    """What adds up so many batches of a split, of each task where there are several; they are
    compared between processes only if it is one.
    """
    several, loader = run.world.size > 1, run.loaders[split]
    scores = scores_of(run, split)
    batches = evaluation_batches(loader, batch_size=run.settings.batch_size or ROWS, limit=limit)
    with evaluating(*run.forward.modules), evaluation_streams(run, split):
        if several and limit == 1 and may_differ(loader):
            batches = list(batches)  # all meet here once, however many there are
            digest = "".join(map(digest_of, batches))
            refuse_other_data(run.world, digest, role=METHODS[split])
        for batch in batches:
            moved = run.hooks.move_batch(run=run, batch=batch, device=run.device)
            outcome = run.hooks.forward(run=run, batch=moved)
            scores.add(moved, outcome)
            if run.forward.assumes_mean and limit == 1:
                _check_is_mean(run, batch, float(outcome.loss))
            if several:
                scores.check_merging(moved, outcome)
    if several:
        end_kept_workers(loader)  # an evaluation has others, which load a share
    return scores


def _check_is_mean(run: Run, batch: Any, loss: float) -> None:
    """Raise PtrainError if the losses of the batch's halves add up to that of the whole."""
    if abs(loss) < 1e-6:
        return
    try:
        halves = [take_rows(batch, Share(rank, 2)).batch for rank in range(2)]
        if any(isinstance(half, StandIn) for half in halves):
            return  # of one row
        total = sum(float(run.forward(move_batch(half, run.device)).loss) for half in halves)
    except Exception:  # a model may do with whole batches only
        return
    if isclose(total, loss, rel_tol=1e-4):
        raise not_a_mean("it is a sum: twice the rows give twice the loss")


def _given(run: Run, scores: Scores) -> list[str]:
    prefixes = ("val",) if run.ema is None else ("val", "val_ema")
    return [f"{prefix}/{name}" for prefix in prefixes for name in scores.names]


def _missing(run: Run, given: list[str]) -> list[tuple[str, str]]:
    """What is watched and not given. Where a plugin may add metrics, or the split is empty, only
    the first evaluation tells.
    """
    if run.hooks.may_add_metrics or not given:
        return []
    return [(setting, name) for setting, name in run.watched if name not in given]
