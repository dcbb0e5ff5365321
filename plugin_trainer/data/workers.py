"""What the worker processes of a loader do before they load anything."""

from __future__ import annotations

import contextlib
import signal
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from plugin_trainer.data.dealt import end_dealt_workers


class WorkerStart:
    """Prepares a worker process: signals are the main process's to answer."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        """Run in the worker, before it loads anything."""
        # Ctrl-C, and the end of a terminal, go to the whole process group: a worker that died of it
        # would make the main process fail before it could save. SIGTERM is how the main process
        # ends a worker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._then is not None:
            self._then(worker)


class Running:
    """Knows the iterator that was made last, without keeping it, so that its workers can be ended.

    Left to Python's collection of garbage, they would live on after a failure, whose traceback
    holds the iterator, and would then be waited for, five seconds each.
    """

    def __init__(self) -> None:
        self._iterator: Callable[[], Any] = lambda: None

    def follow(self, iterator: Any) -> Any:
        """The iterator, known from now on."""
        with contextlib.suppress(TypeError):  # what cannot be referred to weakly has no workers
            self._iterator = weakref.ref(iterator)
        return iterator

    def end(self) -> None:
        """End its workers now."""
        shut_down = getattr(self._iterator(), "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def end_kept_workers(loader: Any) -> None:
    """End the workers that a loader, or each of several by name, keeps between its iterations; the
    next one starts others.
    """
    if isinstance(loader, Mapping):
        for its in loader.values():
            end_kept_workers(its)
        return
    end_dealt_workers(loader)
    shut_down = getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
        loader._iterator = None


def prepare_workers(loader: Any) -> None:
    """Have the workers of a loader that is not ours start like those of ours."""
    if (
        isinstance(loader, DataLoader)
        and loader.num_workers > 0
        and not isinstance(loader.worker_init_fn, WorkerStart)
    ):
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn)
