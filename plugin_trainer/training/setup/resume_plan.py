"""What a resume is about to do, in words: what comes from where, what has changed, is it exact."""

from __future__ import annotations

from collections.abc import Iterator

from plugin_trainer.training.checkpointing.store import Snapshot
from plugin_trainer.training.run import Run
from plugin_trainer.training.setup.resume import Resumption
from plugin_trainer.training.snapshots import same_optimizer


def plan_of(run: Run, resumption: Resumption, snapshot: Snapshot) -> Iterator[str]:
    """The lines of the plan."""
    progress = run.progress
    yield f"going on from {resumption.checkpoint.path}, step {progress.step}"
    for reason in resumption.passed_over:
        yield f"passed over: {reason}"
    yield f"restored: {', '.join(_restored(run, snapshot))}"
    for line in resumption.differing:
        yield f"changed: {line}"
    inexact = list(resumption.inexact)
    if not snapshot.state["exact"]:
        inexact.append("that checkpoint was written after a failure inside a step")
    for reason in inexact:
        yield f"resuming is not exact: {reason}"


def _restored(run: Run, snapshot: Snapshot) -> Iterator[str]:
    state = snapshot.state
    yield "weights"
    if run.ema is not None:
        yield "their average" if snapshot.ema is not None else "an average that begins here"
    yield "optimizer" if same_optimizer(run, snapshot) else "an optimizer that begins here"
    yield "schedule"
    if state["guard"]:
        yield "loss scale"
    yield "random streams"
    yield f"place in the data (epoch {run.progress.epoch}, batch {run.progress.batch})"
    if state["best"]:
        yield "best so far"
    yield from (f"callback state {name}" for name in state["callbacks"])
