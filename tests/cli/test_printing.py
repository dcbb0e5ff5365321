"""Tables of 80 columns, in which prose is wrapped before names are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from plugin_trainer.cli.printing import echo, emit_json, facts, print_error, printable, table

ROOT = Path(__file__).parents[2]
PROSE = "labelled texts or pairs: files, Hugging Face data sets, a generated task, and others"


def test_prose_is_wrapped_and_a_name_beside_it_is_whole():
    lines = table([["dactbert/text_classification", PROSE]], ["name", "what it is"]).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 2
    assert lines[1].startswith("dactbert/text_classification  labelled")


@pytest.mark.parametrize(
    "name",
    [
        "plugins/with_a_long/name_of_many_words_that_go_on_and_on",
        "package.module.sub_module.Class_Of_A_Very_Long_Name",
    ],
)
def test_a_name_that_is_too_long_is_broken_behind_a_sign(name):
    lines = table([[name, "x" * 30, "y" * 24]], ["name", "x", "y"]).splitlines()[1:]
    cells = [line.partition(" ")[0] for line in lines]
    assert max(map(len, lines)) <= 80
    assert "".join(cells) == name
    assert all(cell.endswith(("/", "_", ".")) for cell in cells[:-1]), cells


def test_what_has_no_place_to_be_broken_is_broken_anywhere_and_nothing_is_lost():
    lines = table([["a" * 70, "b" * 70]], ["one", ""]).splitlines()[1:]
    assert max(map(len, lines)) <= 80
    text = "".join(lines)
    assert (text.count("a"), text.count("b")) == (70, 70)
    assert len({line.count("a") for line in lines[:-1]}) == 1


ESCAPES = ["\x1b[2J", "\x07", "\r", "\x7f", "\x9b2J", "\u202e", "\ud800", "\x00"]


@pytest.mark.parametrize("escape", ESCAPES, ids=ascii)
def test_what_could_act_on_a_terminal_is_printed_as_an_escape(capsys, escape):
    print_error(f"no model {escape}", [f"did you mean {escape}?"])
    echo(f"the run is in {escape}", err=True)
    emit_json({"name": escape})
    out, err = capsys.readouterr()
    listed = table([[f"a{escape}b"]], ["name"]) + facts([("name", f"a{escape}b")])
    assert escape not in out + err + listed
    assert escape.encode("unicode_escape").decode()[1:] in err
    assert json.loads(out) == {"name": escape}


def test_all_that_commands_print_is_printed_so():
    files = [*(ROOT / "plugin_trainer/cli").glob("*.py"), *ROOT.glob("plugins/*/ptrain_*/**/*.py")]
    around = [path for path in files if re.search(r"click\.s?echo\(", path.read_text())]
    assert around == [ROOT / "plugin_trainer/cli/printing.py"]


def test_letters_of_every_script_tabs_and_line_ends_stay(capsys):
    assert printable("größe\tΩ\n字🙂") == "größe\tΩ\n字🙂"
    emit_json("größe 字")
    assert capsys.readouterr().out == '"größe 字"\n'


def test_the_middle_of_a_long_line_is_left_out(capsys):
    print_error("run.toml:3: " + "x" * 9000 + ": is too long", ["short"])
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("error: run.toml:3: xxx") and first.endswith("x: is too long")
    assert "characters)" in first and len(first) < 1100 and hint == "  short"
