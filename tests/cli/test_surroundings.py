"""What the machine refuses is said in the system's words, and is no internal error."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main

TOO_LONG = "x" * 300


@pytest.mark.parametrize("command", ["--help", "plugins", "runs --help"])
def test_a_full_standard_output_is_said(monkeypatch, capsys, command):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(command.split()) == 2
        monkeypatch.undo()
    assert capsys.readouterr().err.startswith("error: no space left on device\n  make room")


def test_a_closed_standard_output_is_written_to_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["plugins"]) == 0
    sys.stdout.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", [TOO_LONG, "x/" * 3000, "a\udc80b", "a\x00b"], ids=lambda n: ascii(n[:4])
)
@pytest.mark.parametrize(
    "command", ["run {}.toml", "config check {}.toml", "evaluate {}", "predict {}", "runs show {}"]
)
def test_a_path_that_cannot_be_is_said(toy, ptrain, command, name):
    typed = ptrain(*(part.format(name) for part in command.split()))
    assert typed.code == 2 and typed.err.startswith("error: ")
    assert "internal error" not in typed.err and "\udc80" not in typed.err


def test_too_few_open_files_are_said(trained, capsys):
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.dup(1))
            except OSError:
                break
        code = main(["evaluate", "runs/first"])
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    err = capsys.readouterr().err
    assert code == 2 and "too many open files" in err.lower() and "internal error" not in err
