"""A wheel carries the sources of the kernels, and the library itself if it was put there before."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from plugin_trainer.ops.building.toolchain import Unavailable, find_toolchain
from tests import forkserver

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PARTS = ("plugin_trainer", "csrc", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")

pytest.importorskip("hatchling")

try:
    find_toolchain(torch_cuda=None)
    HAS_COMPILER = True
except Unavailable:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _as_on_any_machine(monkeypatch):
    """Whatever the suite itself is run with."""
    monkeypatch.setenv("PTRAIN_KERNELS", "auto")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "_kernels")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, folder)
    return folder


def run(*args: str, folder: Path, **variables: str) -> str:
    done = forkserver.run(
        [sys.executable, *args],
        forget=("plugin_trainer",),
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(checkout: Path, **variables: str) -> tuple[str, Path]:
    """The wheel's name, and where it was unpacked."""
    run("-m", "hatchling", "build", "-t", "wheel", "-d", "dist", folder=checkout, **variables)
    (wheel,) = (checkout / "dist").glob("*.whl")
    site = checkout.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()
    return wheel.name, site


def kernels(site: Path, *args: str, **variables: str) -> str:
    return run("-m", "plugin_trainer", "kernels", *args, folder=site.parent,
               PYTHONPATH=str(site), **variables)  # fmt: skip


@needs_compiler
@pytest.mark.slow
def test_a_wheel_made_without_a_compiler_holds_all_sources_and_they_build_elsewhere(
    checkout, tmp_path
):
    name, site = build_wheel(checkout, CXX="nonexistent", PATH="/nowhere")
    assert name.endswith("-py3-none-any.whl")
    carried = {path.relative_to(site / "plugin_trainer/_csrc") for path in
               (site / "plugin_trainer/_csrc").rglob("*") if path.is_file()}  # fmt: skip
    assert carried == {path.relative_to(checkout / "csrc") for path in
                       (checkout / "csrc").rglob("*") if path.is_file()}  # fmt: skip
    assert not (site / "plugin_trainer/_kernels").exists()

    # That all are there and fit together is not for the optimizer to say.
    quick = tmp_path / "quick-c++"
    quick.write_text(f'#!/bin/sh\nexec {find_toolchain(torch_cuda=None).command} "$@" -O0\n')
    quick.chmod(0o755)
    elsewhere = {"PTRAIN_KERNELS_CACHE": str(tmp_path / "cache"), "CXX": str(quick)}
    out = kernels(site, "build", **elsewhere)
    assert out.startswith(elsewhere["PTRAIN_KERNELS_CACHE"])
    assert "cached: " in kernels(site, "status", **elsewhere)


@needs_compiler
@pytest.mark.slow
def test_a_wheel_may_carry_the_library_and_is_then_for_one_platform(checkout, tmp_path):
    # The cache of these tests knows the same sources: only the copying is new here.
    out = kernels(checkout, "build", "--into-package")
    assert out.startswith(str(checkout / "plugin_trainer/_kernels/libptrain.so"))
    name, site = build_wheel(checkout)
    assert "-py3-none-any" not in name and "-py3-none-" in name

    alone = {"CXX": "nonexistent", "PTRAIN_KERNELS_CACHE": str(tmp_path / "none")}
    said = kernels(site, "status", **alone)
    assert said.startswith("prebuilt: ")
    assert str(site / "plugin_trainer/_kernels/libptrain.so") in said

    # In a checkout the sources move on, and then the carried library is not theirs.
    source = site / "plugin_trainer/_csrc/core/isa.h"
    source.write_text(source.read_text() + "// changed\n")
    said = kernels(site, "status", **alone)
    assert said.startswith("reference: ")
    assert "was built from other sources" in said
    source.write_text(source.read_text().removesuffix("// changed\n"))
    assert kernels(site, "status", **alone).startswith("prebuilt: ")

    library = site / "plugin_trainer/_kernels/libptrain.so"
    os.truncate(library, 1000)
    said = kernels(site, "status", **alone)
    assert said.startswith("reference: ")
    assert "damaged" in said
