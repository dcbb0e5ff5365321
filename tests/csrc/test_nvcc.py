"""The CUDA kernels compile for every generation of GPU, without spills and in wide accesses."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
GENERATIONS = (80, 90, 100)
# What a thread may use so that four blocks (average, norm) or five (step) share a multiprocessor.
MOST_REGISTERS = {"ema_kernel": 64, "partials_kernel": 64, "step_kernel": 102}
# Too many for the registers of any GPU are moved to memory: none, in any kernel.
NO_SPILLS = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc on the PATH"),
]


@dataclass(frozen=True)
class Compiled:
    """What nvcc said of one file, and the PTX of one generation."""

    returncode: int
    output: str
    ptx: str


def compile_one(source: Path, folder: Path) -> Compiled:
    flags = [f"-gencode=arch=compute_{g},code=sm_{g}" for g in GENERATIONS]
    flags += ["-Werror", "all-warnings", "-Xptxas", "-v", "-Xcompiler", "-Wall,-Wextra"]
    flags += ["--keep", "--keep-dir", str(folder), "-o", str(folder / "out.o")]
    command = [str(NVCC), "-std=c++20", "-O3", *flags, "-c", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    ptx = "".join(path.read_text() for path in folder.glob("*compute_90*.ptx"))
    return Compiled(done.returncode, done.stdout + done.stderr, ptx)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    folders = [tmp_path_factory.mktemp(source.stem) for source in SOURCES]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(compile_one, SOURCES, folders)
        return {source.name: one for source, one in zip(SOURCES, found, strict=True)}


def kernels_of(output: str) -> list[tuple[str, str, int]]:
    """Mangled name, the line about spills and the registers of each kernel of each generation."""
    pattern = r"Compiling entry function '(\w+)'.*\n(?:.*Function properties.*\n)?(.*spill.*)\n"
    pattern += r".*Used (\d+) registers"
    return [(name, spills.strip(), int(used)) for name, spills, used in re.findall(pattern, output)]


@pytest.mark.parametrize("source", [source.name for source in SOURCES])
def test_every_file_compiles_for_every_generation_without_warnings(
    source: str, compiled: dict[str, Compiled]
) -> None:
    one = compiled[source]
    assert one.returncode == 0, one.output
    for generation in GENERATIONS:
        assert f"for 'sm_{generation}'" in one.output


@pytest.mark.parametrize("source", [source.name for source in SOURCES])
def test_no_kernel_spills_and_those_that_stream_leave_room_for_others(
    source: str, compiled: dict[str, Compiled]
) -> None:
    kernels = kernels_of(compiled[source].output)
    assert len(kernels) >= len(GENERATIONS)
    for name, spills, registers in kernels:
        assert spills == NO_SPILLS, name
        for part, most in MOST_REGISTERS.items():
            assert part not in name or registers <= most, f"{name} uses {registers} registers"


@pytest.mark.parametrize(
    ("source", "accesses"),
    [
        ("ema.cu", ("ld.global.cs.v4.u32", "st.global.cs.v4.u32")),
        ("norm.cu", ("ld.global.cs.v4.u32",)),
        ("step.cu", ("ld.global.cs.v4.u32", "st.global.cs.v4.u32")),
    ],
)
def test_what_streams_moves_16_bytes_at_a_time_past_the_caches(
    source: str, accesses: tuple[str, ...], compiled: dict[str, Compiled]
) -> None:
    for access in accesses:
        assert compiled[source].ptx.count(access) >= 4


def test_no_sum_depends_on_the_order_of_threads(compiled: dict[str, Compiled]) -> None:
    for source, one in compiled.items():
        assert one.ptx
        assert not re.search(r"\b(atom|red)\.", one.ptx), source
