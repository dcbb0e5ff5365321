"""docs/models.md: its commands exist, its settings are the code's, and its examples run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest

from plugin_trainer.cli.main import ptrain as ptrain_command
from plugin_trainer.cli.models import models
from plugin_trainer.configuration import configure
from plugin_trainer.model_store.settings import RegisterBestSettings
from plugin_trainer.settings.describe import describe
from plugin_trainer.settings.layers import read_toml
from tests import forkserver

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_command_is_on_the_page_and_every_one_on_the_page_is_a_command():
    on_the_page = set(re.findall(r"^\| `ptrain models (\w+)", PAGE, re.M))
    assert on_the_page == set(models.commands)
    options = {
        option for command in models.commands.values() for p in command.params for option in p.opts
    }
    mentioned = set(re.findall(r"--[a-z][a-z-]*", PAGE)) - {"--resume"}
    assert mentioned <= options


def test_the_example_at_the_top_is_typed_rightly():
    for line in blocks("text")[0].splitlines():
        words = line.split()[1:]
        command = ptrain_command
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
        command.make_context("ptrain", words)


@pytest.mark.parametrize("key", describe(RegisterBestSettings), ids=lambda key: key.key)
def test_every_setting_has_its_row(key):
    default = f"`{key.default}`" if key.default else "required"
    assert f"| `{key.key}` | {default} | {key.meaning} |" in PAGE


@pytest.mark.parametrize("example", blocks("toml"))
def test_the_run_file_is_right(tmp_path, example):
    path = tmp_path / "run.toml"
    path.write_text(example)
    configure(read_toml(path), parts=False)


@pytest.mark.process
@pytest.mark.parametrize("example", blocks("python"))
def test_the_python_runs(here, example):
    done = forkserver.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "signs:1" in done.stdout and "'sign': '+'" in done.stdout
