"""The torch-free kernels build and pass their own tests, without Python or torch in sight."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = (os.environ.get("CXX") or "c++", "g++", "clang++")
COMPILER = next((path for path in map(shutil.which, COMPILERS) if path), None)

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake on the PATH"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler on the PATH"),
]


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_and_test(folder: Path, *options: str) -> str:
    run("cmake", "-S", ROOT, "-B", folder, f"-DCMAKE_CXX_COMPILER={COMPILER}", *options)
    run("cmake", "--build", folder)
    return run("ctest", "--test-dir", folder, "--output-on-failure", "--no-tests=error")


def sanitizer_links(sanitizers: str, folder: Path) -> bool:
    source = folder / "nothing.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [COMPILER, f"-fsanitize={sanitizers}", str(source), "-o", str(folder / "nothing")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        return False
    return subprocess.run([folder / "nothing"], capture_output=True).returncode == 0


def test_the_kernels_build_without_warnings_and_pass_their_tests(tmp_path: Path) -> None:
    report = build_and_test(tmp_path / "build")
    assert "100% tests passed" in report
    commands = json.loads((tmp_path / "build/compile_commands.json").read_text())
    assert any(entry["file"].endswith("csrc/core/ema.cpp") for entry in commands)
    assert all("-Werror" in entry["command"] for entry in commands)


# With six busy processes on two cores it took five minutes, and how long it takes is not tested.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_kernels_pass_their_tests_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    if not sanitizer_links(sanitizers, tmp_path):
        pytest.skip(f"{COMPILER} cannot link and run -fsanitize={sanitizers}")
    report = build_and_test(tmp_path / "build", f"-DPTRAIN_SANITIZE={sanitizers}")
    assert "100% tests passed" in report
