"""Fixtures that make plugins as installers make them: real dist-info folders on sys.path."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HOOKS = """
    from plugin_trainer.specs import ModelSpec

    PTRAIN_API = 1

    def ptrain_models():
        return [ModelSpec(name="base", target="{package}.model:Model", default=True)]
"""


def write(file: Path, text: str) -> Path:
    """Write a dedented file, and the folders it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return file


@dataclass
class Environment:
    """A folder like site-packages, first on sys.path."""

    folder: Path

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
        write(self.folder / package / "__init__.py", "")
        write(self.folder / package / "hooks.py", hooks.replace("{package}", package))
        for file, text in (files or {}).items():
            write(self.folder / package / file, text.replace("{package}", package))
        points = f"[plugin_trainer.plugins]\n{name} = {target or package + '.hooks'}\n"
        if command:
            points += f"\n[plugin_trainer.commands]\n{name} = {command}\n"
        distribution = distribution or f"ptrain-{name}"
        self.write_metadata(distribution, version=version, entry_points=points)
        return package

    def write_metadata(self, distribution: str, *, version: str, entry_points: str) -> Path:
        """The dist-info folder that an installer leaves."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        write(info / "METADATA", metadata)
        write(info / "entry_points.txt", entry_points)
        return info


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """An environment to install plugins into; what was imported is forgotten afterwards."""
    monkeypatch.delenv("PTRAIN_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    environment = Environment(tmp_path / "site-packages")
    environment.folder.mkdir()
    monkeypatch.syspath_prepend(str(environment.folder))
    before = set(sys.modules)
    yield environment
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]
