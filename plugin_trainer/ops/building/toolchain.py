"""The compilers of this machine and what they are told, found without starting any of them.

A compiler is known by its path, size and time of change: asking it for its version would cost more
than loading the finished library.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

TARGET_ABI = "0x020a000000000000ULL"
"""torch 2.10: the library runs on that version and later ones."""

_FLAGS = (
    "-std=c++20",
    "-O3",
    # Contraction to a*b+c, and no errno and no traps: none of them changes NaN, infinity or order.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    f"-DTORCH_TARGET_VERSION={TARGET_ABI}",
)
_CUDA_FLAGS = ("-std=c++20", "-O3", "-Xcompiler", "-fvisibility=hidden")
# The library must name torch's libraries itself: Python loads them where it would not see them.
# C++'s own comes first: torch's export copies of its templates, without versions.
_LINK_LINUX = ("-lstdc++", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed")
_LINK_OTHER = ("-ltorch", "-ltorch_cpu")
# The static runtime: no tie to the CUDA version that torch was built with.
_LINK_CUDA = ("-lcudart_static", "-ldl", "-lrt", "-lpthread")

# What a GPU of each generation runs natively, and the first CUDA release that knows it.
_GENERATIONS = ((80, (11, 0)), (90, (11, 8)), (100, (12, 8)))


class Unavailable(Exception):
    """The library cannot be had here; the message says why, in words for a person."""


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler.

    path     of nvcc
    home     the toolkit's folder
    library  the folder of libcudart_static.a
    version  of the toolkit: (13, 0)
    """

    path: Path
    home: Path
    library: Path
    version: tuple[int, int]


@dataclass(frozen=True)
class Toolchain:
    """The compilers, and how the library is built with them.

    command   the C++ compiler as CXX names it: "c++", "ccache g++"
    programs  the files behind it and nvcc
    nvcc      None: for the CPU alone
    """

    command: str
    programs: tuple[Path, ...]
    nvcc: Nvcc | None
    flags: tuple[str, ...]
    cuda_flags: tuple[str, ...]
    link_flags: tuple[str, ...]

    @property
    def cuda(self) -> bool:
        """Whether the library gets CUDA kernels."""
        return self.nvcc is not None

    def digest(self) -> str:
        """sha256 over the compilers' identities and the flags that depend on this machine."""
        parts = [self.command, *self.cuda_flags, *self.link_flags]
        parts += [os.environ.get(name, "") for name in ("CC", "TORCH_CUDA_ARCH_LIST") if self.cuda]
        for path in self.programs:
            about = path.stat()
            parts.append(f"{path} {about.st_size} {about.st_mtime_ns}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def target_digest() -> str:
    """sha256 over what a library is built for: flags, torch's ABI, system and processor."""
    parts = (*_FLAGS, *_CUDA_FLAGS, sys.platform, platform.machine())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def find_toolchain(*, torch_cuda: str | None) -> Toolchain:
    """The compilers that would build the library.

    torch_cuda  the CUDA version of this torch, "13.0", or None

    Raises Unavailable if there is no C++ compiler.
    """
    if os.name != "posix":
        raise Unavailable(f"the kernels are not built on {platform.system()}")
    command, programs = _find_cxx()
    nvcc = find_nvcc(torch_cuda) if torch_cuda else None
    linux = sys.platform.startswith("linux")
    link = _LINK_LINUX if linux else _LINK_OTHER
    if nvcc is not None:
        programs = (*programs, nvcc.path)
        link = (*link, f"-L{nvcc.library}", *_LINK_CUDA)
    return Toolchain(
        command=command,
        programs=programs,
        nvcc=nvcc,
        flags=(*_FLAGS, f"-DPTRAIN_CUDA={int(nvcc is not None)}"),
        cuda_flags=(*_CUDA_FLAGS, *_architectures(nvcc.version)) if nvcc is not None else (),
        link_flags=link,
    )


def _find_cxx() -> tuple[str, tuple[Path, ...]]:
    wanted = os.environ.get("CXX")
    for command in (wanted,) if wanted else ("c++", "g++", "clang++"):
        found = [shutil.which(word) for word in _words(command)]
        programs = tuple(Path(path).resolve() for path in found if path)
        if found and found[0] is not None:
            return command, programs
    if wanted:
        raise Unavailable(f"there is no C++ compiler: CXX={wanted} cannot be run")
    raise Unavailable("there is no C++ compiler: no c++, g++ or clang++ on the PATH")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation that is not closed
        return []


def find_nvcc(torch_cuda: str) -> Nvcc | None:
    """The CUDA compiler that fits, or None.

    It may be of an older CUDA than torch's, not of a newer major: the driver need not know that.
    """
    for home in _cuda_homes():
        path = home / "bin" / "nvcc"
        library = next(
            (
                folder
                for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")
                if (folder := home / name).joinpath("libcudart_static.a").is_file()
            ),
            None,
        )
        if library is None or not os.access(path, os.X_OK):
            continue
        version = _toolkit_version(home)
        if version is not None and version[0] <= int(torch_cuda.partition(".")[0]):
            return Nvcc(path.resolve(), home, library, version)
    return None


def _cuda_homes() -> list[Path]:
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return [Path(named)]
    on_path = shutil.which("nvcc")
    homes = [Path(on_path).resolve().parents[1]] if on_path else []
    return [*homes, Path("/usr/local/cuda")]


def _toolkit_version(home: Path) -> tuple[int, int] | None:
    try:
        text = str(json.loads((home / "version.json").read_text())["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        try:
            header = (home / "include" / "cuda.h").read_text(errors="replace")
        except OSError:
            return None
        number = re.search(r"#define CUDA_VERSION (\d+)", header)
        return (int(number[1]) // 1000, int(number[1]) % 1000 // 10) if number else None
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _architectures(version: tuple[int, int]) -> tuple[str, ...]:
    """Code for every generation since Ampere, and PTX of the newest for those that come.

    All, not only the GPU at hand: one cache may serve machines of several kinds.
    TORCH_CUDA_ARCH_LIST says otherwise; torch reads it when no flag names an architecture.
    """
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return ()
    known = [number for number, since in _GENERATIONS if version >= since]
    newest = known[-1]
    return (
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in known),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
    )


def ninja_folder() -> str | None:
    """What must be put on the PATH for ninja to be found; "" if nothing, None if there is none."""
    if shutil.which("ninja"):
        return ""
    try:
        import ninja
    except ImportError:
        return None
    return str(ninja.BIN_DIR)
