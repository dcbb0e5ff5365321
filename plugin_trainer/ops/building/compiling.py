"""One compilation by torch's cpp_extension and ninja, in a private folder of this process.

`cpp_extension.load` compiles, links and loads. It has a lock of its own, a file that a killed build
leaves behind for ever; in a fresh folder there is none to wait for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from plugin_trainer.ops.building.sources import Sources
from plugin_trainer.ops.building.toolchain import Toolchain, Unavailable, ninja_folder

_NAME = "libptrain"
_SHOWN_LINES = 3


class BuildFailed(Unavailable):
    """The compiler or the linker refused; `output` is all they said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def compile_and_load(sources: Sources, toolchain: Toolchain, folder: Path) -> Path:
    """Build the library in an empty folder and load it into this process; returns the file.

    Raises Unavailable if ninja is missing, BuildFailed if a compiler fails or the result cannot be
    loaded. Prints nothing.
    """
    ninja = ninja_folder()
    if ninja is None:
        raise Unavailable("ninja is missing, though plugin_trainer requires it")
    variables = {"CXX": _one_word(toolchain.command, folder)}
    if ninja:
        variables["PATH"] = os.pathsep.join((ninja, os.environ.get("PATH", "")))
    if toolchain.nvcc is not None:
        variables |= {
            "CUDA_HOME": str(toolchain.nvcc.home),
            "PYTORCH_NVCC": str(toolchain.nvcc.path),
        }
    with _environment(variables), _quiet("torch.utils.cpp_extension"):
        from torch.utils import cpp_extension

        if toolchain.nvcc is not None:
            # What it read from the environment at its own import may have been another toolkit.
            cpp_extension.CUDA_HOME = str(toolchain.nvcc.home)
        try:
            cpp_extension.load(
                name=_NAME,
                sources=sources.to_compile(cuda=toolchain.cuda),
                extra_cflags=list(toolchain.flags),
                extra_cuda_cflags=list(toolchain.cuda_flags),
                extra_ldflags=list(toolchain.link_flags),
                build_directory=str(folder),
                with_cuda=toolchain.cuda,
                is_python_module=False,
                verbose=False,
            )
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise BuildFailed(_first_errors(str(error)), str(error)) from error
    # A second build in one process is given a number: libptrain_v1.so.
    return next(folder.glob(f"{_NAME}*.so"))


def _one_word(command: str, folder: Path) -> str:
    """The command as a program without arguments, which is all that cpp_extension takes."""
    words = shlex.split(command)
    if len(words) == 1 and " " not in words[0]:
        return words[0]
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    return str(script)


def compiler_version(toolchain: Toolchain) -> str:
    """The first line of the compiler's --version, or its command."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run(
            [*shlex.split(toolchain.command), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout.splitlines()[0].strip()
    return toolchain.command


def is_loaded() -> bool:
    """Whether this process has the ops already."""
    return hasattr(torch.ops.ptrain, "has_cuda")


def _first_errors(output: str) -> str:
    """The lines of a build's output that say what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if re.search(r"\berror\b|undefined reference|undefined symbol|not found", line, re.I)
        and not line.startswith(("Error building extension", "FAILED:"))
    ]
    return "\n".join((telling or lines[-_SHOWN_LINES:])[:_SHOWN_LINES])


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep a module's warnings off the terminal: what matters of them is in the error."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    sys.stdout.flush()
    try:
        yield
    finally:
        found.setLevel(level)
