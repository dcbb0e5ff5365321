"""Take everything that a run is into a snapshot, and put it back."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.errors import CheckpointError, NotSaved, PtrainError, ResumeError
from plugin_trainer.training.checkpointing.store import (
    Snapshot,
    read_own_shards,
    read_snapshot,
    write_own_shards,
    write_rest,
)
from plugin_trainer.training.distributed.buffers import own_buffers, restore_buffers
from plugin_trainer.training.model.model_state import load_model_state
from plugin_trainer.training.optim.optimizers import (
    class_name,
    load_optimizer_state,
    optimizer_state,
)
from plugin_trainer.training.run import Run
from plugin_trainer.training.seeding import capture_rng, restore_rng


def save(run: Run, *, best_of: list[str], exact: bool = True) -> None:
    """Write a checkpoint of the step just made, then move the pointers, then delete old ones.

    best_of  the pointers that this step's evaluation won: "best", "best_ema"
    exact    whether a run resumed from it equals one that never stopped

    Raises NotSaved if the disk refuses, and NonFiniteError if a step before was not finite.
    """
    run.guard.settle()
    try:
        run.disk.check_in_place()
        path = run.store.path_of(run.progress.step)
        if run.saved_at != run.progress.step:
            _write(run, capture(run, exact=exact))
        for pointer in best_of:
            best = run.best[pointer]
            run.store.point(pointer, path, step=best.step, watch=best.watch, value=best.value)
        run.store.prune()
        run.world.gather(None)  # none goes on before the checkpoint is whole
    except OSError as error:
        raise NotSaved(
            f"the checkpoint of step {run.progress.step} could not be written: {error.strerror}",
            hint="the checkpoints before it are whole; make room, then go on with --resume auto",
        ) from error
    if run.saved_at != run.progress.step:
        run.saved_at = run.progress.step
        run.hooks.checkpoint_committed(run=run, path=path)


def _write(run: Run, snapshot: Snapshot) -> None:
    """Write a snapshot: the first process all of it, or each its own rows."""
    store, step, is_first = run.store, run.progress.step, run.world.is_first
    if not snapshot.is_sharded:
        if is_first:
            store.save(snapshot, step=step)
        return
    beside = run.world.from_first(store.begin(step) if is_first else None)
    try:
        write_own_shards(snapshot, beside, group=run.world.group)
        if is_first:
            write_rest(snapshot, beside, step=step)
            store.commit(beside, step)
    except BaseException:
        if is_first:
            store.abandon(beside)
        raise


def read(run: Run, checkpoint: Path) -> Snapshot:
    """What a checkpoint holds, of a sharded model this process's rows. All processes call it."""
    if run.shards is None:
        return read_snapshot(checkpoint)
    return read_own_shards(checkpoint, run.model, group=run.world.group)


def capture(run: Run, *, exact: bool) -> Snapshot:
    """The run as it is between two steps."""
    if run.shards is not None:
        run.shards.changed()  # what a forward pass has gathered is no part of a state
    tensors, extra = _split(run.model.state_dict())
    optimizer_tensors, optimizer_rest = optimizer_state(run.optimizer, run.model, shards=run.shards)
    callbacks = _OneEach()
    run.hooks.checkpoint_save(run=run, state=callbacks)
    own = {
        "meter": run.meter.state_dict(),
        "tasks": run.tasks.state_dict() if run.tasks is not None else None,
        "rng": capture_rng(),
        "loss": run.forward.loss_state(),
        "callbacks": dict(callbacks),
    }
    return Snapshot(
        model=tensors,
        ema=run.ema.state_dict() if run.ema is not None else None,
        optimizer=optimizer_tensors,
        state={
            "exact": exact,
            "progress": run.progress.state_dict(),
            "stopped": run.stop_reason if run.is_stopped else "",
            "batches_per_epoch": run.stream.batches_per_epoch,
            "optimizer": optimizer_rest,
            "schedule": run.schedule.state_dict(),
            "guard": run.guard.state_dict(),
            "stream": run.stream.state_dict(),
            "ema": run.ema.counters() if run.ema is not None else None,
            "best": {pointer: best.state_dict() for pointer, best in run.best.items()},
            "cursors": run.stream.cursors(epoch=run.progress.epoch, batch=run.progress.batch),
            "logged": run.logged,
            "metric_lines": run.disk.count_metrics(),
            "metrics": run.metrics if run.evaluated_at == run.progress.step else {},
            "model_extra": extra,
            "frozen": [name for name, p in run.model.named_parameters() if not p.requires_grad],
            "in_evaluation": [name for name, m in run.model.named_modules() if not m.training],
            **own,
            **(_of_processes(run, own) if run.together is not None else {}),
        },
    )


def _of_processes(run: Run, own: Mapping[str, Any]) -> dict[str, Any]:
    """How several processes make a step, and what each but the first has of its own."""
    assert run.together is not None
    each = run.world.gather({**own, "buffers": own_buffers(run)})
    return {"together": run.together.state_dict(), "processes": each[1:]}


class _OneEach(UserDict[str, Any]):
    """What callbacks keep in a checkpoint: one of them to a key."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            raise PtrainError(
                f"two callbacks keep their state under '{key}'", hint="give each a key of its own"
            )
        super().__setitem__(key, value)


def restore(run: Run, snapshot: Snapshot, *, changed: Collection[str] = ()) -> None:
    """Put a snapshot into a run built from the same settings, but for those of the keys `changed`.

    The random streams are put back later, by `restore_streams`, after everything that may draw from
    them while the run starts.

    Raises CheckpointError if the snapshot does not fit the run.
    """
    state = snapshot.state
    _load_model(run, snapshot)
    if "frozen" in state:  # after the optimizer is built: what is frozen later stays in it
        for name, parameter in run.model.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        run.in_evaluation = state["in_evaluation"]
    if same_optimizer(run, snapshot):
        load_optimizer_state(
            run.optimizer,
            run.model,
            snapshot.optimizer,
            state["optimizer"],
            shards=run.shards,
            with_new_settings=any(key.startswith("optimizer.") for key in changed),
        )
    run.schedule.load_state_dict(state["schedule"], anew=any(map(_moves_rates, changed)))
    run.guard.load_state_dict(state["guard"])
    run.stream.load_state_dict(state["stream"])
    if run.ema is not None:
        if snapshot.ema is None:  # [ema] is new to the run, which --allow has let pass
            run.ema.begin()
        else:
            run.ema.load_state_dict(snapshot.ema, updates=state["ema"]["updates"])
    run.progress.load_state_dict(state["progress"])
    if state["stopped"] and not changed:
        run.request_stop(state["stopped"])
    _move_cursor(run, batches_per_epoch=state["batches_per_epoch"])
    _check_cursors(run, state.get("cursors", {}))
    for pointer, best in run.best.items():
        if pointer in state["best"]:
            best.load_state_dict(state["best"][pointer])
            path = run.store.path_of(best.step)
            if best.value is not None and path.is_dir():
                run.store.point_again(
                    pointer, path, step=best.step, watch=best.watch, value=best.value
                )
    run.logged = dict(state["logged"])
    run.metrics = dict(state["metrics"])
    run.evaluated_at = run.progress.step if run.metrics else -1
    run.saved_at = run.progress.step
    if run.together is not None:
        run.together.load_state_dict(state.get("together", {}))
    own = _own_part(run, state)
    run.hooks.checkpoint_load(run=run, state=own.get("callbacks", state["callbacks"]))
    _restore_own(run, own)


def _own_part(run: Run, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What this process had of its own; nothing for a process that was not there then."""
    if run.world.is_first:
        return state
    others = state.get("processes", ())
    return others[run.world.rank - 1] if run.world.size == 1 + len(others) else {}


def _restore_own(run: Run, own: Mapping[str, Any]) -> None:
    """The sums that are not logged yet, the random streams, the buffers."""
    if not own:
        return
    run.meter.load_state_dict(own["meter"], device=run.device)
    if run.tasks is not None and own.get("tasks") is not None:
        run.tasks.load_state_dict(own["tasks"], device=run.device)
    run.rng = own["rng"]
    run.forward.load_loss_state(own.get("loss", {}))
    restore_buffers(run, own.get("buffers", {}))


def same_optimizer(run: Run, snapshot: Snapshot) -> bool:
    """Whether the snapshot is of an optimizer of the same class; another can do nothing with it."""
    return bool(snapshot.state["optimizer"]["class"] == class_name(run.optimizer))


def _moves_rates(key: str) -> bool:
    """Whether a setting has a say in the learning rate of a step."""
    return key.partition(".")[0] in ("optimizer", "schedule", "schedule_settings", "length") or (
        key in ("accumulate", "batch_size")  # how long an epoch of warm-up is
    )


def restore_streams(run: Run) -> None:
    """Put the random streams back where the checkpoint had them, and the modules that were in
    evaluation mode; nothing in a run that was not resumed.
    """
    if run.rng is not None:
        restore_rng(run.rng)
        run.rng = None
    modules = dict(run.model.named_modules())
    for name in run.in_evaluation:
        modules[name].training = False


def _move_cursor(run: Run, *, batches_per_epoch: int | None) -> None:
    """Refuse a place in an epoch that the data no longer has; an epoch's end is one in any data."""
    progress, now = run.progress, run.stream.batches_per_epoch
    if now == batches_per_epoch or now is None or batches_per_epoch is None:
        return
    if progress.batch != batches_per_epoch:
        raise ResumeError(
            f"the training data has {now} batches an epoch, and had {batches_per_epoch}: "
            f"batch {progress.batch} of epoch {progress.epoch} is no longer the same place",
            hint="go on with the data and the batch size of the run, or start another",
        )
    progress.batch = now


def _check_cursors(run: Run, before: Mapping[str, int]) -> None:
    """Refuse a place in a mixture that its tasks are not at: they have other data now."""
    now = run.stream.cursors(epoch=run.progress.epoch, batch=run.progress.batch)
    for task in {**before, **now}:
        if before.get(task) != now.get(task):
            raise ResumeError(
                f"task '{task}' stood at its batch {before.get(task, 'none')}, and with the data "
                f"of now it would stand at {now.get(task, 'none')}",
                hint="go on with the tasks, the data and the mixture of the run, or start another",
            )


def _load_model(run: Run, snapshot: Snapshot) -> None:
    extra: Mapping[str, Any] = snapshot.state["model_extra"]
    try:
        load_model_state(run.model, {**snapshot.model, **extra})
        if run.shards is not None:
            run.shards.changed()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(
            f"the checkpoint's weights do not fit the model {type(run.model).__name__}", hint=lines
        ) from error


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's state as tensors and the rest, which modules add by get_extra_state."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
