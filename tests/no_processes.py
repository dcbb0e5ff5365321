"""A plugin of pytest for `make quick`: a test that starts a process fails, so that each is marked.

git is let through: every run asks it for the state of the working folder, in 3 ms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

_started: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        command = arguments[1]
        program = os.fsdecode(command if isinstance(command, (str, bytes)) else command[0])
        if os.path.basename(program) != "git":  # noqa: PTH119
            _started.append(program)
    elif event in ("os.fork", "os.posix_spawn"):
        _started.append(event)
    elif event == "socket.connect" and "forkserver-" in str(arguments[1]):
        _started.append("the fork server")


sys.addaudithook(_note)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    result = yield
    if _started:
        pytest.fail(f"it has started {_started[0]}: mark it with @pytest.mark.process")
    return result
