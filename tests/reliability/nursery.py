"""Starts runs as processes of their own in milliseconds: they are forked off one that has imported
everything.

A run started here is a process like any other: it can be killed, it gets real signals, and it has a
file mode mask, limits and an owner of its own. Only the seconds that importing torch takes are
saved. `cold=True` starts one from nothing all the same.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_IMPORTED = (
    *("plugin_trainer.cli.main", "plugin_trainer.cli.run", "plugin_trainer.cli.evaluate"),
    *("plugin_trainer.training.api", "plugin_trainer.registry.blame"),
    *("torchmetrics.classification", "torch._dynamo"),
)
_POLL_S = 0.004


class Nursery:
    """The process that has imported everything, and what is asked of it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(
        self,
        *command: str | Path,
        output: Path,
        cold: bool = False,
        cwd: Path | None = None,
        variables: dict[str, str] | None = None,
        umask: int | None = None,
        largest_file: int | None = None,
        user: int | None = None,
    ) -> Child:
        """Start `python COMMAND...`, where `-m plugin_trainer` is understood, and a script.

        output        the file that stdout and stderr go to
        cold          start a Python of its own
        variables     environment variables to add
        umask         the process's file mode mask
        largest_file  no file may grow beyond so many bytes: writing more fails as on a full disk
        user          the user id to run as; only root may ask for one
        """
        order = {
            "command": [str(part) for part in command],
            "output": str(output),
            "cwd": str(cwd or Path.cwd()),
            "variables": variables or {},
            "umask": umask,
            "largest_file": largest_file,
            "user": user,
        }
        if cold:
            return Child.cold(order)
        return Child(self._ask({"start": order}), output, nursery=self)

    def status(self, pid: int) -> int | None:
        """How a child ended, as subprocess says it; None while it runs."""
        return self._ask({"status": pid})

    def close(self) -> None:
        """End the process; what it has started goes on."""
        # Closing its input would not do: a process forked off this one may hold the pipe open.
        self._server.stdin.write(json.dumps({"end": True}) + "\n")
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _ask(self, what: dict[str, Any]) -> Any:
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@dataclass
class Child:
    """A process that was started: a group of its own, as a shell would make it."""

    pid: int
    output: Path
    nursery: Nursery | None = None
    process: subprocess.Popen | None = None
    code: int | None = None

    @classmethod
    def cold(cls, order: dict[str, Any]) -> Child:
        """A Python of its own, which then does as a forked one would."""
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(order)], stdin=subprocess.DEVNULL
        )
        return cls(process.pid, Path(order["output"]), process=process)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.code is None:
            asked = self.nursery.status(self.pid) if self.nursery else self.process.poll()
            self.code = asked
        return self.code

    def wait(self, timeout_s: float = 120) -> int:
        """The exit status, once there is one. A process that hangs is killed and is an error."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL, group=True)
                raise AssertionError(f"still running after {timeout_s} s:\n{self.text}")
            time.sleep(_POLL_S)
        return self.code

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process or, as Ctrl-C on a terminal does, to its whole group."""
        (os.killpg if group else os.kill)(self.pid, number)

    @property
    def text(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self.output.read_text() if self.output.is_file() else ""


# ------------------------------------------------------------------------------------- the process


def _serve() -> dict[str, Any] | None:
    """Do what each line asks for. In a forked process, return what it is to become."""
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "end" in asked:
            break
        if "status" in asked:
            pid, status = os.waitpid(asked["status"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return asked["start"]
            _make_group(answer)
        print(json.dumps(answer), flush=True)
    return None


def _make_group(pid: int) -> None:
    """Both sides do it, so that it is done whoever comes first."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        assert os.getpgid(pid) == pid


def _become(order: dict[str, Any]) -> None:
    """Turn this process into the one that was ordered."""
    _make_group(os.getpid())
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, output, output)):
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.update(order["variables"])
    os.chdir(order["cwd"])
    if order["umask"] is not None:
        os.umask(order["umask"])
    if order["largest_file"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
    if order["user"] is not None:
        os.setgid(order["user"])
        os.setuid(order["user"])
    command = order["command"]
    if command[:2] == ["-m", "plugin_trainer"]:
        from plugin_trainer.cli.main import main

        sys.argv = ["ptrain", *command[2:]]
        raise SystemExit(main())
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def _live(order: dict[str, Any]) -> None:
    """Be a forked process to its end, and end as Python does, but for taking its modules apart:
    that touches every page of memory, which would all have to be copied.
    """
    code: Any = 0
    try:
        _become(order)
    except SystemExit as left:
        code = left.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _main() -> None:
    if len(sys.argv) > 1:
        _become(json.loads(sys.argv[1]))
        return
    for name in _IMPORTED:
        __import__(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what collecting garbage touches, a forked process must copy
    order = _serve()
    if order is not None:
        _live(order)


if __name__ == "__main__":
    _main()
