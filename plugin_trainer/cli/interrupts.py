"""Remembers a Ctrl-C, for libraries in other languages make other errors of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CtrlC:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.came = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember it, and raise KeyboardInterrupt as Python does."""
        self.came = True
        signal.default_int_handler(number, frame)


@contextmanager
def noting_ctrl_c() -> Iterator[CtrlC]:
    """Note every Ctrl-C inside. Where Python's own handler is not in charge, nothing is changed."""
    noted = CtrlC()
    in_charge = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not in_charge or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, noted.handle)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
