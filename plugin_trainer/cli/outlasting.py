"""Go on when nobody reads any more: the pipe behind `| head`, a terminal that was closed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def outlasting_readers() -> Iterator[None]:
    """Drop what anybody writes to stdout and stderr inside, once they cannot be written."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if stream is None else _Outlasting(stream) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Outlasting:
    """A text stream that cannot fail."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            written: int = self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)
        return written

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Whatever is left in the buffer, and comes later, goes nowhere; Python's own flush at exit
        too.
        """
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
