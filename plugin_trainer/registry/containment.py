"""While a plugin is loaded, what it does to the process stays its own affair."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_interrupted = False


class _ToStderr(io.TextIOBase):
    """Standard output, as a plugin sees it: what it prints must not end up in JSON, and what it
    closes is not ours.
    """

    def write(self, text: str) -> int:
        """Print it as a message."""
        return sys.stderr.write(text)

    def close(self) -> None:
        """Leave it open."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Inside, standard output goes to standard error, and Ctrl-C can be told from a plugin's own
    KeyboardInterrupt.
    """
    global _interrupted
    _interrupted, before = False, signal.getsignal(signal.SIGINT)
    watched = threading.current_thread() is threading.main_thread() and callable(before)

    def interrupted(number: int, frame: FrameType | None) -> None:
        global _interrupted
        _interrupted = True
        if callable(before):
            before(number, frame)

    if watched:
        signal.signal(signal.SIGINT, interrupted)
    try:
        with contextlib.redirect_stdout(_ToStderr()):
            yield
    finally:
        if watched:
            signal.signal(signal.SIGINT, before)


def was_interrupted() -> bool:
    """Whether the user pressed Ctrl-C while the plugin at hand was loaded."""
    return _interrupted
