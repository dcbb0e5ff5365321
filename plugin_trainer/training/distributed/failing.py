"""A process that cannot go on, and the others: all hear of it, and all save one step or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from plugin_trainer.errors import NonFiniteError
from plugin_trainer.training.distributed.world import PeerFailed, PeerLost

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run

_PATIENCE_S = 60.0


def is_lost(error: BaseException) -> bool:
    """Whether an error is what a library makes of another process that is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection closed by peer")
    )


def all_can_save(run: Run, error: BaseException, *, can: bool) -> bool:
    """Tell the others of an error, and hear whether all stand at one step and can save it.

    can  whether this process can

    An error of another process, of which only a step told, learns here what it was. One that comes
    where this process cannot tell (`Together.go_along`) is marked `alone`: the others wait where
    they do not hear, until this process is gone.
    """
    if run.together is None:
        return can
    if run.leaving or not isinstance(error, Exception) or isinstance(error, PeerLost):
        return False
    thread = None
    try:
        if isinstance(error, PeerFailed) and not error.met:
            error.learn(run.world.fail(None))
        elif not isinstance(error, NonFiniteError):  # which all find, and none waits for another
            if (thread := run.together.go_along()) is None:
                error.alone = True  # type: ignore[attr-defined]
                return False
            if not isinstance(error, PeerFailed):
                run.world.fail(error)
        places = run.world.gather((can, run.progress.step, run.saved_at))
        if thread is not None:  # all have gone along by now, or are about to
            thread.join(_PATIENCE_S)
    except (PeerFailed, PeerLost):
        return False
    return len(set(places)) == 1 and can
