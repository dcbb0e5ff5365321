"""Let a thread do what may take long, so that training waits for it seldom and never for long."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LONGEST_PAUSE_S = 300.0


def within(timeout_s: float, work: Callable[[], object]) -> bool:
    """Do the work in a thread; whether it was done in time. It goes on if it was not."""
    thread = threading.Thread(target=work, name="mlflow", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()


class Repeated:
    """Work that a thread does every so often, and less and less often while it fails.

    work     says whether it went well, and raises nothing
    every_s  seconds from the end of one to the beginning of the next
    """

    def __init__(self, work: Callable[[], bool], *, every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin, with a pause."""
        threading.Thread(target=self._repeat, name="mlflow", daemon=True).start()

    def stop(self) -> None:
        """Begin no more; does not wait for work under way."""
        self._stopped.set()

    def _repeat(self) -> None:
        pause_s = self._every_s
        while not self._stopped.wait(pause_s):
            went_well = self._work()
            longer_s = max(self._every_s, min(2 * pause_s, _LONGEST_PAUSE_S))
            pause_s = self._every_s if went_well else longer_s
