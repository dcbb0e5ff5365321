"""`ptrain kernels` says which kernels are used and why, and builds them ahead of time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plugin_trainer.ops.building.toolchain import Unavailable, find_toolchain
from tests import forkserver
from tests.ops.checkout import Checkout

pytestmark = pytest.mark.process

try:
    find_toolchain(torch_cuda=None)
    HAS_COMPILER = True
except Unavailable:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")


def kernels(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Typed in a process of its own: a process loads one library, for good."""
    return forkserver.run(
        [sys.executable, "-m", "plugin_trainer", "kernels", *args],
        env={**os.environ, "COLUMNS": "80", **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(autouse=True)
def _as_on_any_machine(monkeypatch):
    """Whatever the suite itself is run with."""
    monkeypatch.setenv("PTRAIN_KERNELS", "auto")


@pytest.fixture
def empty(tmp_path: Path) -> dict[str, str]:
    """Variables for a machine where nothing has been built."""
    return {"PTRAIN_KERNELS_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}


@needs_compiler
def test_status_says_what_is_used_and_where_it_is():
    assert kernels("build").returncode == 0
    done = kernels()
    assert (done.returncode, done.stderr) == (0, "")
    first, blank, *rows = done.stdout.splitlines()
    assert re.match(r"(cached|prebuilt|built): compiled kernels that ", first)
    assert blank == ""
    labels = [row.split()[0] for row in rows]
    assert labels[:4] == ["library", "instructions", "cuda", "torch"]
    about = json.loads(kernels("--json").stdout)
    assert about["library"] == rows[0].split()[1]
    assert Path(about["library"]).is_file()
    assert about["instruction_set"] in ("baseline", "avx2", "avx512")
    assert kernels("status").stdout == done.stdout
    assert json.loads(kernels("status", "--json").stdout) == about


@needs_compiler
def test_status_builds_nothing_and_says_how_to(empty):
    done = kernels("status", **empty)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reference: the kernels have not been built yet\n")
    assert done.stdout.endswith("\nnext: ptrain kernels build\n")
    assert not Path(empty["PTRAIN_KERNELS_CACHE"]).exists()


def test_without_a_compiler_status_is_no_error_and_build_is(empty):
    empty["CXX"] = "nonexistent"
    done = kernels(**empty)
    assert done.returncode == 0
    assert done.stdout.startswith("reference: there is no C++ compiler: CXX=nonexistent")
    assert "next:" not in done.stdout
    assert json.loads(kernels("--json", **empty).stdout)["compiler"] is None
    done = kernels("build", **empty)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the kernels cannot be built here: there is no C++ compiler: "
        "CXX=nonexistent cannot be run\n"
    )


def test_off_is_said_and_a_wrong_choice_is_an_error():
    done = kernels(PTRAIN_KERNELS="off")
    assert done.returncode == 0
    assert done.stdout.startswith("off: PTRAIN_KERNELS=off\n")
    done = kernels(PTRAIN_KERNELS="on")
    assert done.returncode == 2
    assert done.stderr.startswith("error: PTRAIN_KERNELS is 'on'\n")


@needs_compiler
def test_build_builds_once_and_again_when_it_is_forced(tmp_path):
    checkout = Checkout(tmp_path)

    def build(*options: str) -> tuple[list[str], str]:
        process = checkout.start("-m", "plugin_trainer", "kernels", "build", *options)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out.splitlines(), err

    (path, reason), said = build()
    assert said == "building the kernels, once: about 5 s\n"
    assert Path(path).is_file() and reason == "  compiled kernels, built now"
    before = Path(path).stat().st_mtime_ns
    assert build()[0] == [path, "  compiled kernels that were built before"]
    assert Path(path).stat().st_mtime_ns == before
    assert build("--force")[0][0] == path
    assert Path(path).stat().st_mtime_ns != before


@needs_compiler
def test_a_build_that_fails_shows_the_first_errors_and_the_log(empty, tmp_path):
    compiler = tmp_path / "bad-c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$1" in -*v*) echo 13.1.0; exit 0;; esac\n'
        "echo 'x.cpp:1: error: no such thing as a kernel' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    done = kernels("build", **empty, CXX=str(compiler))
    assert done.returncode == 2
    error, log = (
        line for line in done.stderr.splitlines() if "error: the" in line or "log" in line
    )
    assert error == (
        "error: the kernels cannot be built here: x.cpp:1: error: no such thing as a kernel"
    )
    assert "no such thing" in Path(log.removeprefix("  the whole log: ")).read_text()


def test_help_says_what_there_is(ptrain):
    typed = ptrain("kernels", "--help")
    for command in ("status", "build", "bench"):
        assert re.search(rf"^  {command} +\S", typed.out, re.M)
    assert "  kernels   " in ptrain("--help").out
