"""The documentation cannot lie: what comes from the code is as the code has it; examples run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from plugin_trainer import hookspecs
from plugin_trainer.callbacks import settings as callback_settings
from plugin_trainer.settings import schedules, schema, tuning
from plugin_trainer.settings.describe import describe
from plugin_trainer.settings.layers import read_toml
from tests import forkserver

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.process
def test_the_generated_parts_are_as_the_code_has_them():
    done = forkserver.run(
        [sys.executable, str(DOCS / "make.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def settings_classes() -> list[type]:
    modules = (schema, schedules, tuning, callback_settings)
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("cls", settings_classes(), ids=lambda cls: cls.__name__)
def test_every_setting_says_what_it_means(cls):
    assert [key.key for key in describe(cls) if not key.meaning] == []


def test_every_hook_says_when_it_is_called():
    hooks = [function for name, function in vars(hookspecs).items() if name.startswith("ptrain_")]
    assert len(hooks) >= 20
    assert all(function.__doc__ for function in hooks)


def test_every_table_of_a_run_has_its_keys_in_the_documentation():
    page = (DOCS / "run-files.md").read_text(encoding="utf-8")
    for cls in settings_classes():
        for key in describe(cls):
            assert f"| `{key.key}` |" in page, f"{cls.__name__}.{key.key}"


def run_files() -> list[str]:
    return code_blocks(DOCS / "run-files.md", "toml")


@pytest.mark.parametrize("example", run_files())
def test_the_parts_of_run_files_in_the_documentation_are_right(tmp_path, example):
    from plugin_trainer.configuration import configure

    path = tmp_path / "run.toml"
    path.write_text(example)
    configure(read_toml(path), parts="model " in example)


@pytest.mark.process
@pytest.mark.parametrize("page", ["library.md", "kernels.md", "../README.md"])
def test_the_python_in_the_documentation_runs(page, tmp_path):
    blocks = code_blocks(DOCS / page, "python")
    assert blocks
    for block in blocks:
        done = forkserver.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
