"""What all tests share: one thread for torch, `ptrain` to be typed, and plugins made as installers
make them, real dist-info folders on sys.path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import plugin_trainer
from plugin_trainer.cli.main import main
from plugin_trainer.ops.building.memo import user_cache
from tests import forkserver

HOOKS = """
    from plugin_trainer.specs import ModelSpec

    PTRAIN_API = 1

    def ptrain_models():
        return [ModelSpec(name="base", target="{package}.model:Model", default=True)]
"""

# Tests that have a home of their own share the machine's kernels, rather than build them each.
if (cache := user_cache()) is not None:
    os.environ["PTRAIN_KERNELS_CACHE"] = cache

# The profiler's library reads it once in a process: a test of another part may be the first to ask.
os.environ["KINETO_LOG_LEVEL"] = "6"

# A shell that runs the tests in the background has switched Ctrl-C off for them and for every
# process they start: tests that send it would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

GROUPS = ("plugin_trainer.plugins", "plugin_trainer.commands")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are small, and threads that wait for a busy core are slow: 12 s became 2."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Environment:
    """A folder like site-packages, first on sys.path.

    folder   where plugins are installed
    shadows  hides the plugins that are really installed here: of two distributions of one name the
             first on sys.path counts
    """

    folder: Path
    shadows: Path

    @property
    def cwd(self) -> Path:
        """The current folder of the test."""
        return self.folder.parent / "work"

    def write(self, file: str | Path, text: str) -> Path:
        """Write a dedented file, relative to the current folder, and the folders it needs."""
        path = self.cwd / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    def install(
        self,
        name: str,
        *,
        hooks: str = HOOKS,
        files: Mapping[str, str] | None = None,
        distribution: str = "",
        version: str = "0.1.0",
        package: str = "",
        command: str = "",
        target: str = "",
    ) -> str:
        """Install a plugin; returns its import package.

        hooks    source of its hook module; "{package}" stands for the import package
        files    further modules of the package, by file name
        command  "module:attribute" of a click command
        """
        package = package or f"ptrain_{name}"
        for file, text in {"__init__.py": "", "hooks.py": hooks, **(files or {})}.items():
            self.write(self.folder / package / file, text.replace("{package}", package))
        points = f"[plugin_trainer.plugins]\n{name} = {target or package + '.hooks'}\n"
        if command:
            points += f"\n[plugin_trainer.commands]\n{name} = {command}\n"
        distribution = distribution or f"ptrain-{name}"
        self.write_metadata(distribution, version=version, entry_points=points)
        return package

    def write_metadata(
        self, distribution: str, *, version: str, entry_points: str, folder: Path | None = None
    ) -> Path:
        """The dist-info folder that an installer leaves."""
        stem = f"{distribution.replace('-', '_')}-{version}"
        info = (folder or self.folder) / f"{stem}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        self.write(info / "METADATA", metadata)
        self.write(info / "entry_points.txt", entry_points)
        return info

    def run(
        self, *args: str, cold: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run this Python in a new process that sees the same plugins."""
        repository = Path(plugin_trainer.__file__).parents[1]
        path = os.pathsep.join(map(str, (self.folder, self.shadows, repository)))
        return forkserver.run(
            [sys.executable, *args],
            cold=cold,
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """An environment to install plugins into; what was imported is forgotten afterwards."""
    monkeypatch.delenv("PTRAIN_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = Environment(tmp_path / "site-packages", tmp_path / "shadows")
    for folder in (environment.folder, environment.shadows, environment.cwd):
        folder.mkdir()
    monkeypatch.chdir(environment.cwd)
    for entry in (entry for group in GROUPS for entry in entry_points(group=group)):
        if entry.dist is not None:
            environment.write_metadata(
                entry.dist.name, version="0", entry_points="", folder=environment.shadows
            )
    monkeypatch.syspath_prepend(str(environment.shadows))
    monkeypatch.syspath_prepend(str(environment.folder))
    before = set(sys.modules)
    # What another test has imported of a really installed plugin is not what is installed here.
    real = {name: sys.modules.pop(name) for name in before if name.startswith("ptrain_")}
    yield environment
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]
    for name in [name for name in sys.modules if name.startswith("ptrain_")]:
        del sys.modules[name]
    sys.modules.update(real)


@dataclass(frozen=True)
class Typed:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def ptrain(capsys: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    """Type a `ptrain` command, in this process."""

    def type_(*args: str) -> Typed:
        capsys.readouterr()
        code = main(args)
        out, err = capsys.readouterr()
        return Typed(code, out, err)

    return type_
