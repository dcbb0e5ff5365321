"""Start Python processes in milliseconds: they are forked off a server that has imported torch.

`Popen` and `run` are those of `subprocess` for commands that begin with `sys.executable`. A process
started here is one like any other: it can be killed, gets real signals, and has an environment, a
session, a file mode mask and limits of its own. Only the seconds that imports take are saved. What
it starts with `[sys.executable, ...]` in its turn, as torchrun does, is forked off the same server.
`cold=True` starts a Python of its own all the same, as do options such as `-W`; tests of start-up
and of what is imported need that.

The server has one thread and never trains, so no lock is held when it forks.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import platform
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

ADDRESS = "PTRAIN_TESTS_FORKSERVER"
"""Names the server's socket to the processes that it has forked."""

_IMPORTED = (
    *("plugin_trainer.cli.main", "plugin_trainer.cli.run", "plugin_trainer.cli.evaluate"),
    *("plugin_trainer.cli.tune", "plugin_trainer.cli.study", "plugin_trainer.registry.blame"),
    *("plugin_trainer.training.api", "plugin_trainer.tuning.search", "torchmetrics.classification"),
    *("torch._dynamo", "torch.distributed.run", "torch.distributed.fsdp"),
    *("torch.distributed.checkpoint", "torch.utils.tensorboard", "torch.profiler"),
    *("torch._inductor.compile_fx", "networkx", "numpy.ctypeslib", "torch.profiler._cupti_monitor"),
    *("plugin_trainer.callbacks.learning_rate_monitor", "plugin_trainer.ops.norm.native"),
    *("optuna.storages._rdb.storage", "alembic.command"),
    *(
        "ptrain_dactbert.classifier",
        "ptrain_multitask_bert.model",
        "ptrain_reinforcement.q_network",
    ),
)
PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT
_SubprocessPopen = subprocess.Popen
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Popen(_SubprocessPopen):
    """subprocess.Popen that forks Python off the server.

    cold          start a Python of its own
    forget        modules to import anew, with what is below them: ("plugin_trainer",)
    largest_file  no file may grow beyond so many bytes: writing more fails as on a full disk
    """

    def __init__(
        self,
        args: Any,
        *positional: Any,
        cold: bool = False,
        forget: tuple[str, ...] = (),
        largest_file: int | None = None,
        **options: Any,
    ) -> None:
        self._connection: socket.socket | None = None
        self._forked = not (cold or positional) and _order(args, options)
        if self._forked:
            self._forked |= {"forget": forget, "largest_file": largest_file}
        elif largest_file is not None:
            options["preexec_fn"] = lambda: _limit_files(largest_file)
        super().__init__(args, *positional, **options)

    # subprocess has made the pipes by now; their ends are the 13th, 15th and 16th argument or so.
    def _execute_child(self, args: Any, *given: Any) -> None:
        if not self._forked:
            super()._execute_child(args, *given)  # type: ignore[misc]
            return
        stdin, _, _, stdout, _, stderr = ours = given[9:15]
        names = (stdin, stdout, stderr)
        descriptors = [own if own >= 0 else number for number, own in enumerate(names)]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(start())
        order = json.dumps(self._forked).encode()
        socket.send_fds(self._connection, [len(order).to_bytes(8)], descriptors)
        self._connection.sendall(order)
        self._close_pipe_fds(*ours)  # type: ignore[attr-defined]
        self.pid = self._read()
        self._child_created = True

    def _read(self) -> int:
        assert self._connection is not None
        answer = self._connection.recv(8)
        if len(answer) < 8:
            raise RuntimeError("the fork server has ended")
        return int.from_bytes(answer, signed=True)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return super().poll() if self._connection is None else self._wait_forked(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once there is one. Raises TimeoutExpired."""
        if self._connection is None:
            return super().wait(timeout)
        if self._wait_forked(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _wait_forked(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = self._read()
        return self.returncode

    def __del__(self, **_: Any) -> None:
        if self._connection is not None:
            self._connection.close()
        else:
            super().__del__()  # type: ignore[misc]


def run(
    args: Any,
    *,
    input: str | None = None,
    timeout: float | None = 240,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run, by way of `Popen`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class Process(Popen):
    """`python COMMAND...` with its output in a file and a process group of its own, as a shell
    would make it.

    output     the file that stdout and stderr are added to
    variables  environment variables to add
    """

    def __init__(
        self,
        *command: str | Path,
        output: Path,
        variables: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.output = output
        with output.open("ab") as file:
            super().__init__(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(variables or {})},
                process_group=0,
                **options,
            )

    def wait(self, timeout: float | None = 120) -> int:
        """The exit status, once there is one. A process that hangs is killed and is an error."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL, group=True)
            raise AssertionError(f"still running after {timeout} s:\n{self.text}") from None

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process or, as Ctrl-C on a terminal does, to its whole group."""
        with suppress(ProcessLookupError):  # it has just ended, and is the server's to reap
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def text(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self.output.read_text() if self.output.is_file() else ""


def _order(args: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What the server is told of a command; nothing if it must be started from nothing."""
    if sys.platform != "linux" or isinstance(args, (str, bytes, os.PathLike)):
        return {}
    program, *rest = (os.fsdecode(arg) for arg in args)
    unbuffered = rest[:1] == ["-u"]
    rest = rest[unbuffered:]
    from_nothing = {"executable", "preexec_fn", "shell", "pass_fds"} & options.keys()
    if program != sys.executable or not rest or from_nothing:
        return {}
    if rest[0].startswith("-") and rest[0] not in ("-c", "-m"):
        return {}
    environment = options.get("env")
    return {
        "command": rest,
        "unbuffered": unbuffered,
        "cwd": os.fsdecode(options.get("cwd") or Path.cwd()),
        "env": {**(os.environ if environment is None else environment)},
        "session": bool(options.get("start_new_session")),
        "group": options.get("process_group"),
        "umask": options.get("umask"),
        "user": options.get("user"),
    }


# ------------------------------------------------------------------------------------- the server

_server: _SubprocessPopen[bytes] | None = None


def start() -> str:
    """The server's socket; it is started where there is none yet, and imports nothing before it is
    asked for a process.
    """
    global _server
    if (address := os.environ.get(ADDRESS)) and _server is None:
        return address  # of the server that has forked this process, or that its parent has started
    if _server is None:
        folder = tempfile.TemporaryDirectory(prefix="forkserver-")
        atexit.register(folder.cleanup)
        path = f"{folder.name}/socket"
        _server = _SubprocessPopen(
            [sys.executable, __file__, path],
            env={**_ENVIRONMENT, "OMP_NUM_THREADS": "1"},  # not that of the test that comes first
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert _server.stdout is not None
        os.environ[ADDRESS] = path
        if _server.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the fork server has not started: exit status {_server.wait()}")
    return os.environ[ADDRESS]


def _serve(path: str) -> None:
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(100)
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    waiting.register(os.pidfd_open(parent), selectors.EVENT_READ, "parent")
    print("ready", flush=True)
    if any(key.data == "parent" for key, _ in waiting.select()):
        return
    subprocess.Popen = Popen  # type: ignore[misc]  # before anything imports it by name
    for name in _IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch

    from plugin_trainer.configuration import configure
    from plugin_trainer.training.setup.environment import packages

    configure(parts=False)  # pydantic makes what checks the settings, once a process
    packages(), platform.platform()  # read once a process, too
    torch.set_num_threads(1)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread may hold a lock while this forks"  # noqa: PTH208
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # clearing torch's caches would take every forked process 40 ms
    gc.collect()
    gc.freeze()  # what collecting garbage touches, a forked process must copy
    while True:
        for key, _ in waiting.select():
            if key.data == "parent":
                return
            if key.fileobj is listening:
                _fork(waiting, listening)
                continue
            waiting.unregister(key.fileobj)
            os.close(key.fd)
            pid, connection = key.data
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError):  # nobody may be left to hear it
                connection.sendall(status.to_bytes(8, signed=True))
            connection.close()


def _fork(waiting: selectors.BaseSelector, listening: socket.socket) -> None:
    connection = listening.accept()[0]
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    order = b""
    while len(order) < int.from_bytes(size):
        if not (more := connection.recv(1 << 20)):
            return  # whoever asked has been killed
        order += more
    pid = os.fork()
    if pid == 0:
        _live(json.loads(order), descriptors, connection)
    for descriptor in descriptors:
        os.close(descriptor)
    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


# ------------------------------------------------------------------------------- a forked process


def _live(order: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    """Be the process to its end, and end as Python does, but for taking its modules apart: that
    touches every page of memory, which would all have to be copied.
    """
    code: Any = 0
    try:
        _become(order, descriptors, connection)
        _run(order["command"])
    except SystemExit as left:
        code = left.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _become(order: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    if order["session"]:
        os.setsid()
    if order["group"] is not None:
        os.setpgid(0, order["group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["cwd"])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(order["env"])
    os.environ[ADDRESS] = sys.argv[1]
    tempfile.tempdir = None  # TMPDIR may be another
    if order["umask"] is not None:
        os.umask(order["umask"])
    _limit_files(order["largest_file"])
    if order["user"] is not None:
        os.setgid(order["user"])
        os.setuid(order["user"])
    connection.sendall(os.getpid().to_bytes(8, signed=True))
    connection.close()
    os.closerange(3, 4096)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
    if order["unbuffered"]:
        sys.stdout.reconfigure(write_through=True)
    for name in list(sys.modules):
        if any(name == top or name.startswith(f"{top}.") for top in order["forget"]):
            del sys.modules[name]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator sees to it itself


def _limit_files(largest: int | None) -> None:
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def _run(command: list[str]) -> None:
    """Do what `python COMMAND...` does."""
    kind, name, arguments = command[0], command[0], command[1:]
    if kind in ("-c", "-m"):
        name, *arguments = arguments
    searched = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = {"-c": "", "-m": os.getcwd()}.get(kind, str(Path(name).parent))  # noqa: PTH109
    sys.path[:] = [first, *searched, *sys.path[1:]]
    importlib.invalidate_caches()
    sys.argv = ["-c" if kind == "-c" else name, *arguments]
    if kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(name, "<string>", "exec"), vars(main))
    else:
        runpy.run_path(name, run_name="__main__")


if __name__ == "__main__":
    # As the module that it is, so that there is one `Popen` in this process.
    sys.path[0] = str(Path(__file__).parents[1])
    from tests import forkserver

    forkserver._serve(sys.argv[1])
