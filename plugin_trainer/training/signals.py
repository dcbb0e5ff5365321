"""SIGTERM, SIGINT and SIGHUP while training: the first stops the run after its step, the second
leaves at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from plugin_trainer.training.run import Run

# A scheduler may signal every process, and torchrun passes on to all what it receives itself.
_PASSED_ON_S = 5.0

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


@contextmanager
def answered(run: Run) -> Iterator[None]:
    """Answer these signals inside, and give them back to their earlier handlers afterwards.

    Only the main thread may set handlers; in another one the signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()
    first_at: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker that is just starting has inherited it
            if number in (signal.SIGINT, signal.SIGHUP):
                return  # what a terminal sends is the main process's to answer
            raise SystemExit(128 + number)
        if first_at and run.world.size > 1 and time.monotonic() - first_at[0] < _PASSED_ON_S:
            return
        if first_at:
            # Python swallows what is raised in some places: a third signal finds no handler here.
            for other, handler in earlier.items():
                signal.signal(other, handler)
            run.leaving = number
            before = earlier[number]
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        first_at.append(time.monotonic())
        run.interrupt(f"{_NAMES[signal.Signals(number)]} was received", signal=number)

    earlier: dict[int, Any] = {}
    for number in map(int, _NAMES):
        # What the parent has switched off (nohup) or C code answers is left alone.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            earlier[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
