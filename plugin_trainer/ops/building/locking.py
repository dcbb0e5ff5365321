"""One builder at a time: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.05

# A forked child shares the lock of its parent and would keep it alive; it lets go at once.
_held: set[int] = set()


class LockTimeout(Exception):
    """Somebody else has held the lock for too long."""


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    timeout_s: float,
    patience_s: float = 1.0,
    waiting: Callable[[], None] = lambda: None,
    done: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold the lock file `path`; yields False, without it, once `done()` says it is not needed.

    timeout_s   how long to wait for it at most
    patience_s  after which `waiting` is called, once

    Raises LockTimeout, and OSError if the file cannot be made or its file system has no locks.
    """
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _held.add(handle)
    try:
        began = time.monotonic()
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                owned = True
                break
            except BlockingIOError:
                if done():
                    owned = False
                    break
            waited_s = time.monotonic() - began
            if waited_s > timeout_s:
                raise LockTimeout(f"{path} has been locked for {waited_s:.0f} s")
            if waited_s > patience_s and not said:
                said = True
                waiting()
            time.sleep(_POLL_S)
        try:
            yield owned
        finally:
            if owned:
                fcntl.flock(handle, fcntl.LOCK_UN)  # also where a forked child still has it open
    finally:
        _held.discard(handle)
        os.close(handle)


def _let_go() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
