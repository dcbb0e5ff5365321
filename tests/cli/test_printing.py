"""Tables of 80 columns, in which prose is wrapped before names are."""

from __future__ import annotations

import pytest

from plugin_trainer.cli.printing import table

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
