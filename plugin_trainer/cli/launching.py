"""Start a command in several processes of this machine, by torchrun, and end as they end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from plugin_trainer.errors import PtrainError


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def refuse_several(command: str) -> None:
    """Raise PtrainError for a command that works in one process, if torchrun has started more."""
    count = os.environ.get("WORLD_SIZE", "1")
    if is_launched() and count != "1":
        error = PtrainError(
            f"'ptrain {command}' works in one process, and torchrun has started {count}",
            hint="a search starts its own: ptrain tune --workers N"
            if command == "tune"
            else f"without torchrun: ptrain {command}; out of a run: unset TORCHELASTIC_RUN_ID",
        )
        error.told = True  # each process finds it, and one says so
        raise error


def speaks() -> bool:
    """Whether this process is the one of those started together that tells the user things."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], *, processes: int) -> int:
    """Run `ptrain` with these arguments in so many processes; the exit code of the first to end.

    A signal is passed on, and they end as a run ends that gets it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    # It tells of every process that ends otherwise than by 0, which that process has done itself.
    logging.disable(logging.CRITICAL)
    if "--debug" in sys.argv:
        os.environ["PTRAIN_DEBUG"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    own = ["--standalone", "--nproc-per-node", str(processes)]
    try:
        with TemporaryDirectory(prefix="ptrain-launch-") as logs:  # it would leave one behind
            torchrun(parse_args([*own, "--log-dir", logs, "-m", "plugin_trainer", *arguments]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        code: int = first.exitcode
        if code < 0:
            print(f"error: a process was ended by signal {-code}", file=sys.stderr)
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0
