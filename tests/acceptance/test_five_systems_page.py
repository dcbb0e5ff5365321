"""docs/five-systems.md cannot lie: its tests exist, its keys are keys, and no row is left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin_trainer.configuration import configure
from plugin_trainer.settings.layers import from_assignments

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs/five-systems.md").read_text(encoding="utf-8")

SECTIONS = dict(re.findall(r"^## System (\d{3})\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
FAULTS = {"000": 20, "001": 12, "002": 24, "003": 17, "004": 15}


def table(section: str, columns: int) -> list[list[str]]:
    """The rows of the section's table of so many columns, its header left out."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows if len(row) == columns and not set(row[0]) <= {"-"}][1:]


def features(number: str) -> list[list[str]]:
    return table(SECTIONS[number], 4)


def faults(number: str) -> list[list[str]]:
    return table(SECTIONS[number], 3)


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def shown_by(cell: str) -> list[str]:
    return [text for text in code(cell) if re.search(r"(^|::)test_|^[\w/]+\.py$", text)]


def defined(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def named(number: str) -> Iterator[tuple[str, str]]:
    """The tests that a section names: file and function, the function empty for a whole file."""
    for row in (*features(number), *faults(number)):
        for test in shown_by(row[-1]):
            file, _, function = test.rpartition("::")
            if not file and test.endswith(".py"):
                file, function = test, ""
            yield file or f"tests/acceptance/test_system_{number}.py", function


def runs() -> list[tuple[str, str, str]]:
    """What the tables say is to be written: number, feature, the cell."""
    return [(number, row[0], row[2]) for number in SECTIONS for row in features(number)]


def test_there_is_a_section_for_each_system():
    assert SECTIONS.keys() == FAULTS.keys()


@pytest.mark.parametrize("number", SECTIONS)
def test_every_fault_has_its_row(number):
    rows = [int(row[0]) for row in faults(number)]
    assert rows == list(range(1, FAULTS[number] + 1))
    assert all(len(row[1]) > 10 and len(row[2]) > 10 for row in faults(number))


@pytest.mark.parametrize("number", SECTIONS)
def test_every_feature_has_a_test(number):
    assert len(features(number)) >= 10
    assert [row[0] for row in features(number) if not (row[1] and shown_by(row[3]))] == []


@pytest.mark.parametrize("number", SECTIONS)
def test_every_test_that_is_named_exists(number):
    missing = [
        f"{file}::{function}"
        for file, function in named(number)
        if not (ROOT / file).is_file() or (function and function not in defined(ROOT / file))
    ]
    assert missing == []


@pytest.mark.parametrize("number", SECTIONS)
def test_every_test_of_a_system_is_named(number):
    file = f"tests/acceptance/test_system_{number}.py"
    tests = {name for name in defined(ROOT / file) if name.startswith("test_")}
    assert tests - {function for where, function in named(number) if where == file} == set()


@pytest.mark.parametrize("number", SECTIONS)
def test_a_fault_is_shown_by_the_test_of_its_own_row(number):
    for row, _, here in faults(number):
        for test in shown_by(here):
            if found := re.match(r"test_bug_(\d+)_", test):
                assert int(found[1]) == int(row), test


@pytest.mark.parametrize(
    ("number", "feature", "cell"), [pytest.param(*run, id=f"{run[0]}-{run[1]}") for run in runs()]
)
def test_what_is_to_be_written_are_settings_of_a_run(number, feature, cell):
    assignments = code(cell)
    assert all("=" in assignment for assignment in assignments)
    if not assignments:
        return
    plugin = re.search(r"--plugin (\w+)", SECTIONS[number])
    configure(
        plugins=[plugin[1]] if plugin else [],
        overrides=from_assignments([re.sub(r"\s*=\s*", "=", one, count=1) for one in assignments]),
        parts=plugin is not None,
    )
