"""A plugin that misbehaves while it is loaded is one row, and the others are listed."""

from __future__ import annotations

import json

import pytest

from plugin_trainer.cli.main import main
from tests.conftest import HOOKS

GOOD = "PTRAIN_API = 1\ndef ptrain_models(): return []\n"
PROXY = "class Proxy:\n    def __getattr__(self, name): raise RuntimeError('no request')\n"
BROKEN = {
    "exits": "raise SystemExit('bye')",
    "interrupts": "raise KeyboardInterrupt",
    "base": "raise BaseException('odd')",
    "generator": "raise GeneratorExit",
    "dir": GOOD + "def __dir__(): raise RuntimeError('no')",
    "api": "class Number(int):\n    def __eq__(self, other): raise ValueError\n"
    "    __hash__ = None\nPTRAIN_API = Number(1)\ndef ptrain_models(): return []",
}
NOISY = {
    "prints": "print('hello')\nimport sys\nsys.stdout.write('more')\n" + GOOD,
    "warns": "import warnings\nwarnings.warn('careful')\n" + GOOD,
    "closes": "import sys\nsys.stdout.close()\n" + GOOD,
    "offers": "PTRAIN_API = 1\ndef ptrain_models():\n    print('hello')\n    return []\n",
    "getattr": GOOD + "def __getattr__(name): raise RuntimeError('no')",
    "proxy": PROXY + "request = Proxy()\n" + GOOD,
}


def listed(capsys):
    assert main(["plugins", "--json"]) in (0, 1, 2)
    out = capsys.readouterr().out
    return {row["name"]: row for row in json.loads(out)}


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:careful")
@pytest.mark.parametrize("hooks", NOISY.values(), ids=NOISY.keys())
def test_what_it_prints_warns_of_or_closes_leaves_json_alone(installed, capsys, hooks):
    installed.install("noisy", hooks=hooks)
    installed.install("good", hooks=HOOKS)
    rows = listed(capsys)
    assert {"noisy", "good"} <= rows.keys()
    assert main(["plugins", "check", "noisy"]) == 0
    capsys.readouterr()
    assert main(["config", "schema", "--plugin", "noisy"]) == 0
    text = capsys.readouterr().out
    json.loads(text[text.index("{") :])


@pytest.mark.parametrize("hooks", BROKEN.values(), ids=BROKEN.keys())
def test_whatever_it_raises_is_its_own_row(installed, capsys, hooks):
    installed.install("broken", hooks=hooks)
    installed.install("good", hooks=HOOKS)
    rows = listed(capsys)
    assert {"broken", "good"} <= rows.keys()
    assert main(["plugins", "check", "broken"]) == 1
    said = "".join(capsys.readouterr())
    assert "broken" in said and "internal error" not in said


@pytest.mark.parametrize(
    "text", [b"[plugin_trainer.plugins\nx", b"\xff\xfe\x00", b"no section = x"]
)
def test_a_damaged_file_of_another_package_hides_no_plugin(installed, capsys, text):
    installed.install("good", hooks=HOOKS)
    info = installed.write_metadata("damaged", version="1", entry_points="")
    (installed.cwd / info / "entry_points.txt").write_bytes(text)
    assert main(["--help"]) == 0
    capsys.readouterr()
    assert "good" in listed(capsys)
