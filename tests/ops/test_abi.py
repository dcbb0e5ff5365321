"""The library asks of torch only what torch 2.10's stable ABI has: one file serves later ones too.

A second torch is not at hand in a test run; this one's headers say what each version had.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from plugin_trainer.ops import library
from plugin_trainer.ops.building import toolchain

SHIM = Path(__file__).parents[2] / "csrc" / "binding" / "shim.h"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(library.status().compiled is None, reason=library.status().reason),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler to read the headers"),
    pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm to list symbols"),
]

# What the C and C++ run-time libraries offer: by version, or in namespace std.
SYSTEM = re.compile(r".+@@?(GLIBC|GLIBCXX|CXXABI|GCC|LIBC)_.+")
STANDARD = re.compile(r"_ZN?[KVRO]*S[abdiost]|_ZT[IVSTC]N?[KV]*S[abdiost]|_ZGVNS|_Z(nw|na|dl|da)")


def declared(target: str) -> set[str]:
    """The functions that torch's C shim declares for a target version."""
    include = Path(torch.__file__).parent / "include"
    done = subprocess.run(
        [str(COMPILER), "-std=c++20", "-E", "-P", "-x", "c++", "-DUSE_CUDA",
         f"-DTORCH_TARGET_VERSION={target}", "-isystem", str(include), "-"],
        input="#include <torch/csrc/stable/c/shim.h>\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", done.stdout))


def undefined(path: Path) -> list[str]:
    """The symbols that a library expects of others, weak ones of the linker's own left out."""
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    return [name for kind, name in rows if kind == "U" or "torch" in name]


def test_every_symbol_is_of_torch_2_10s_stable_abi_or_of_the_system():
    has = declared(toolchain.TARGET_ABI)
    foreign = [
        name
        for name in undefined(library.find().path)
        if not SYSTEM.fullmatch(name) and not STANDARD.match(name) and name not in has
    ]
    assert foreign == []


def test_no_symbol_is_of_torchs_cpp_interface():
    names = undefined(library.find().path)
    assert [name for name in names if re.search(r"3c10|2at\d|5torch", name)] == []
    assert "aoti_torch_library_init_def" in names


# Declarations that differ from torch's are an error; the numbers are compared one by one.
COMPARED = """
#include "shim.h"
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>
#define SAME(name) static_assert(static_cast<int>(ptrain::glue::ScalarType::name) == \\
                                 static_cast<int>(torch::headeronly::ScalarType::name))
SAME(Byte); SAME(Char); SAME(Short); SAME(Int); SAME(Long); SAME(Half); SAME(Float); SAME(Double);
SAME(Bool); SAME(BFloat16); SAME(UInt16); SAME(UInt32); SAME(UInt64);
static_assert(ptrain::glue::built_for == TORCH_VERSION_2_10_0);
"""


def compare(header: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile a header of declarations beside torch's own."""
    (folder / "shim.h").write_text(header)
    include = Path(torch.__file__).parent / "include"
    return subprocess.run(
        [str(COMPILER), "-std=c++20", "-fsyntax-only", "-x", "c++", "-DUSE_CUDA",
         f"-DTORCH_TARGET_VERSION={toolchain.TARGET_ABI}", "-I", str(folder),
         "-isystem", str(include), "-"],
        input=COMPARED, capture_output=True, text=True,
    )  # fmt: skip


def test_our_declarations_are_torchs(tmp_path):
    done = compare(SHIM.read_text(), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("ours", "wrong"),
    [
        ("get_numel(AtenTensorHandle tensor, std::int64_t*", "std::int32_t*"),
        ("aoti_torch_copy_(AtenTensorHandle self, AtenTensorHandle from, std::int32_t", "bool"),
        ("BFloat16 = 15", "14"),
    ],
)
def test_a_declaration_that_is_not_torchs_is_noticed(ours, wrong, tmp_path):
    begin = ours.rpartition(" ")[0]
    header = SHIM.read_text()
    assert header.count(ours) == 1
    done = compare(header.replace(ours, f"{begin} {wrong}"), tmp_path)
    assert done.returncode != 0


def test_the_headers_tell_versions_apart():
    older, newer = declared(toolchain.TARGET_ABI), declared("0x020d000000000000ULL")
    assert "torch_parallel_for" in older
    assert newer > older


def test_the_library_names_torchs_libraries_and_not_pythons():
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    done = subprocess.run(
        ["readelf", "-d", str(library.find().path)], capture_output=True, text=True, check=True
    )
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", done.stdout))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert not [name for name in needed if "python" in name or "c10" in name or "cudart" in name]
    assert not re.search(r"RPATH|RUNPATH", done.stdout)
