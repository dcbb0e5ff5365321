"""The loop: train, evaluate, log, keep the best, save, stop, in this order at every step."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from plugin_trainer.cadence import Span
from plugin_trainer.training.distributed.buffers import same_buffers
from plugin_trainer.training.evaluation import evaluate
from plugin_trainer.training.result import BestCheckpoint, Result, Status
from plugin_trainer.training.run import Run
from plugin_trainer.training.sanity_check import check_watched, rehearse
from plugin_trainer.training.snapshots import restore_streams, save
from plugin_trainer.training.test_split import score_test_split


def train(run: Run) -> Result:
    """Train until the length is reached or someone asks to stop."""
    hooks, plan = run.hooks, run.plan
    started = time.perf_counter()
    for module in run.forward.modules:
        module.train()
    hooks.run_start(run=run)
    if run.progress.step == 0:
        with _evaluating(run):
            given = rehearse(run)
        check_watched(run, given)
    restore_streams(run)
    run.start_clock()
    for window in run.windows():
        run.sound = False
        outcome = hooks.train_step(run=run, micro_batches=window.micro_batches)
        run.stopwatch.lap("optimizer")
        run.progress.advance(
            window, samples=run.speed.count(window.micro_batches, samples=window.samples)
        )
        run.sound = True
        run.hear_of_stops()
        run.meter.add(outcome)
        hooks.step_end(run=run, outcome=outcome)
        run.stopwatch.lap("callbacks")

        metrics = _evaluate(run) if run.is_due(plan.evaluate) else {}
        if metrics:
            run.stopwatch.lap("evaluation")
        if (training := run.is_due(plan.log)) or metrics:
            run.write_log(metrics, training=training)
        best_of = run.note_evaluation(metrics) if metrics else []
        if window.last:
            hooks.epoch_end(run=run)
            run.stopwatch.lap("callbacks")
        if best_of or run.is_due(plan.save):
            save(run, best_of=best_of)
            run.stopwatch.lap("saving")
        if run.stop_reason:
            break
    return _finish(run, seconds=time.perf_counter() - started)


def _evaluate(run: Run) -> dict[str, float]:
    """An evaluation, after which all processes stop if one of them wants to."""
    same_buffers(run)
    with _evaluating(run):
        metrics = evaluate(run)
    run.report_not_finite(metrics)
    run.agree_to_stop()
    return metrics


def _evaluating(run: Run) -> AbstractContextManager[None]:
    return nullcontext() if run.together is None else run.together.evaluating()


def _finish(run: Run, *, seconds: float) -> Result:
    """The last evaluation and checkpoint, where the last step had none; then the test split."""
    status: Status = "finished" if run.is_complete else run.stop_status
    best_of = []
    if status != "interrupted":
        metrics = _evaluate(run) if run.evaluated_at != run.progress.step else {}
        unlogged = any(run.world.gather(not run.meter.is_empty))
        if metrics or unlogged:
            run.write_log(metrics, training=unlogged)
            run.saved_at = -1  # a checkpoint of this step knows nothing of it: write it again
        best_of = run.note_evaluation(metrics) if metrics else []
    save(run, best_of=best_of)
    with _evaluating(run):
        tested = score_test_split(run) if status != "interrupted" else {}
    if tested:
        run.write_log(tested, training=False)
        run.metrics.update(tested)
    for module in run.forward.modules:
        module.eval()
    result = _result(run, status=status, seconds=seconds)
    run.hooks.run_end(run=run, result=result)
    return result


def _done(length: Span) -> str:
    return f"{length} {'is' if length.amount == 1 else 'are'} done"


def _result(run: Run, *, status: Status, seconds: float) -> Result:
    return Result(
        status=status,
        reason=_done(run.settings.length) if status == "finished" else run.stop_reason,
        step=run.progress.step,
        epoch=run.progress.epoch,
        samples=run.progress.samples,
        metrics=run.metrics,
        best={
            "ema" if pointer == "best_ema" else "raw": BestCheckpoint(
                best.watch, best.value, best.step, run.store.path_of(best.step).name
            )
            for pointer, best in run.best.items()
            if best.value is not None
        },
        folder=run.folder,
        model=run.model,
        seconds=seconds,
        signal=run.signal if status == "interrupted" else 0,
        reports=run.reports,
    )
