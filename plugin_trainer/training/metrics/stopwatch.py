"""Where the time of a run goes: seconds by phase since the last log line."""

from __future__ import annotations

from time import perf_counter

PHASES = ("data", "forward_backward", "optimizer", "callbacks", "evaluation", "saving")
_NOT_TRAINING = ("evaluation", "saving")


class Stopwatch:
    """Adds up time by phase: each lap gives the time since the last one to what has just ended.

    On an accelerator these are the host's times: work that is still queued counts where the host
    waits for it.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._seconds: dict[str, float] = {}
        self.reset()

    def lap(self, phase: str) -> None:
        """A phase has just ended."""
        now = perf_counter()
        self._seconds[phase] += now - self._since
        self._since = now

    def reset(self) -> None:
        """Begin again from here."""
        self._since = perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        return dict(self._seconds)

    def training_seconds(self) -> float:
        """Seconds of all phases but evaluation and saving."""
        return sum(time for phase, time in self._seconds.items() if phase not in _NOT_TRAINING)
