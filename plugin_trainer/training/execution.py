"""Train a run to whatever end it comes to, and leave a record and a checkpoint of it."""

from __future__ import annotations

import traceback
from signal import SIGINT

import torch

from plugin_trainer.data.workers import end_kept_workers
from plugin_trainer.errors import NonFiniteError, NotSaved, PtrainError, TrainingFailed
from plugin_trainer.registry.blame import in_words, what_and_where
from plugin_trainer.run_folder import now
from plugin_trainer.training import signals
from plugin_trainer.training.distributed.failing import all_can_save, is_lost
from plugin_trainer.training.distributed.world import PeerFailed, PeerLost
from plugin_trainer.training.loop import train
from plugin_trainer.training.result import Result
from plugin_trainer.training.run import Run
from plugin_trainer.training.seeding import determinism
from plugin_trainer.training.snapshots import save


def execute(run: Run) -> Result:
    """Train. The run folder must be held; it is released here.

    Raises PtrainError for a failure, once its checkpoint, if the state is sound, is on disk.
    """
    started = run.disk.read_about().get("started") or now()
    run.disk.write_about(status="running", reason="", started=started)
    try:
        # Until its end is written down: torchrun signals the others as soon as one has failed.
        with signals.answered(run):
            return _trained(run)
    finally:
        run.stream.close()
        if run.settings.compile is not None:
            # What one run compiled counts against the limit of the next one's recompilations.
            torch.compiler.reset()
        run.disk.release()


def _trained(run: Run) -> Result:
    try:
        with determinism(run.settings.deterministic):
            result = train(run)
        run.disk.write_about(**result.record(), restored_best=run.restored_best, ended=now())
        return result
    except BaseException as error:
        failed = _failed(run, error)
        for loader in run.loaders.values():
            end_kept_workers(loader)
        if failed is error:
            raise
        raise failed from error


def _failed(run: Run, error: BaseException) -> BaseException:
    """Save what is sound, tell the callbacks, and put the error into words."""
    step = run.progress.step
    explained = _explain(run, error)
    traceback_kept = _keep_traceback(run, error)
    if isinstance(explained, PtrainError) and traceback_kept:
        explained.hint = (*explained.hint, traceback_kept)  # before other processes learn of it
    try:
        saved = _save_what_is_sound(run, explained)
        if isinstance(explained, PtrainError) and saved:
            explained.hint = (*explained.hint, saved)
        if isinstance(error, NonFiniteError):
            run.disk.write_metrics({"step": error.step, **error.metrics})
        run.hooks.run_failed(run=run, error=error)
    except BaseException as second:  # a callback may raise what it likes
        if run.leaving:
            raise
        explained.add_note(f"and then, while closing the run: {in_words(second)}")
    reason = next(iter(str(explained).splitlines()), "") or type(explained).__name__
    if not isinstance(error, PtrainError) and isinstance(error, Exception):
        reason = f"{reason}: {in_words(error)}"
    if run.leaving:
        reason = "a second signal was received"
    try:
        run.disk.write_about(status="failed", reason=reason, step=step, ended=now())
    except Exception as second:
        explained.add_note(f"and then, while closing the run: {in_words(second)}")
    return explained


def _keep_traceback(run: Run, error: BaseException) -> str:
    """Put the traceback into the run folder; where it is, for the user. Of several processes, not
    one that ends only because another one failed.
    """
    if run.leaving or isinstance(error, PeerFailed):
        return ""
    several = f"process {run.world.rank} of {run.world.size}, " if run.world.size > 1 else ""
    heading = f"{several}after step {run.progress.step}, {now()}\n\n"
    path = run.disk.add_traceback(heading + "".join(traceback.format_exception(error)) + "\n")
    return f"the traceback is in {path}" if path is not None else ""


def _explain(run: Run, error: BaseException) -> BaseException:
    if run.leaving and isinstance(error, Exception):
        # Python has swallowed what the second signal raised; this is what came of that.
        return KeyboardInterrupt() if run.leaving == SIGINT else SystemExit(128 + run.leaving)
    if isinstance(error, PtrainError) or not isinstance(error, Exception):
        return error
    if run.together is not None and is_lost(error):
        return PeerLost()
    try:
        run.disk.check_in_place()  # without its folder whatever writes there may fail first
    except NotSaved as gone:
        return gone
    blamed = run.hooks.explain(error, step=run.progress.step)
    if blamed is not None:
        return blamed
    return TrainingFailed(
        f"the run failed after step {run.progress.step}",
        hint=what_and_where(error),
    )


def _save_what_is_sound(run: Run, error: BaseException) -> str:
    """A checkpoint of the last completed step, unless it is there or cannot be; what to tell the
    user.
    """
    why_not = _why_not_saved(run, error)
    if not all_can_save(run, error, can=why_not is None):
        return why_not or ""
    if run.saved_at != run.progress.step:
        try:
            # A step was begun and has drawn random numbers, so that what follows will not be the
            # same.
            with run.world.telling():
                save(run, best_of=[], exact=False)
        except NonFiniteError as second:
            run.disk.write_metrics({"step": second.step, **second.metrics})
            return f"its state was not saved: {second.message}"
        except Exception as second:
            return f"its state could not be saved: {in_words(second)}"
    return f"the run was saved to {run.store.path_of(run.progress.step)} before stopping"


def _why_not_saved(run: Run, error: BaseException) -> str | None:
    """Why there is nothing to be saved, as far as a user wants to know; None if there is."""
    if not run.sound or run.progress.step == 0 or isinstance(error, NotSaved):
        return ""
    if run.leaving:
        return ""  # whoever sent a second signal wants the process gone
    if isinstance(error, NonFiniteError) and error.step <= run.progress.step:
        return "steps were counted since that were not applied: the checkpoint before it is sound"
    if run.saved_at != run.progress.step and _has_nan(run):
        return "its state was not saved: a buffer of the model holds NaN"
    return None


def _has_nan(run: Run) -> bool:
    """Whether a bad batch has spoilt what a forward pass moves, such as a batch normalisation."""
    buffers = [buffer for buffer in run.model.buffers() if buffer.is_floating_point()]
    return any(bool(buffer.isnan().any()) for buffer in buffers)
