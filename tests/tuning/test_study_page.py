"""docs/tuning.md cannot lie: its tables are right searches, and its commands are commands."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import click
import pytest

from plugin_trainer.cli.config_check import problems_in
from plugin_trainer.cli.main import ptrain
from plugin_trainer.configuration import configure
from plugin_trainer.settings.layers import read_toml
from plugin_trainer.tuning.checking import problems_in_tuning

PAGE = (Path(__file__).parents[2] / "docs/tuning.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[str]:
    """Every command of ours on the page, without what is said beside it."""
    text = "\n".join(blocks("text")).replace("\\\n", "")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    return [
        re.split(r"\s{3,}|\s+#", line)[0]
        for line in (re.sub(r"\s+--set", " --set", line) for line in lines)
        if line.startswith("ptrain ")
    ] + re.findall(r"`(ptrain [^`\n]+)`", PAGE)


@pytest.mark.parametrize("example", blocks("toml"))
def test_every_table_is_a_search_that_could_begin(tmp_path, example):
    path = tmp_path / "run.toml"
    path.write_text(example)
    plugins = ["dactbert"] if "model_settings" in example else []
    sources = partial(configure, read_toml(path), plugins=plugins, parts=bool(plugins))
    check = problems_in if plugins else (lambda _: ())
    assert problems_in_tuning(sources(), sources, more=check) == []


def test_the_page_has_commands():
    assert len(commands()) >= 15


@pytest.mark.parametrize("line", commands())
def test_every_command_can_be_typed(line):
    _, *words = shlex.split(line)
    command, context = ptrain, click.Context(ptrain)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, name
    try:
        command.make_context("ptrain", words)
    except click.MissingParameter:
        assert not words  # in a sentence a command is named by itself


def test_the_figures_of_the_winner_are_those_of_the_table():
    """What `study best` prints is a row of what `ptrain tune` printed."""
    for study, metric in (("rate", "val/task_loss"), ("front", "val/task_loss")):
        (number, value) = re.search(
            rf"^trial (\d+) of {study}: {metric} ([\d.]+)", PAGE, re.MULTILINE
        ).groups()
        assert re.search(rf"^{number} +finished +{value} ", PAGE, re.MULTILINE)
