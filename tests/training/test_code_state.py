"""Whether a resume sees that the code of a run has changed, and only that."""

from __future__ import annotations

import functools
import importlib.util
import sys

import pytest
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from plugin_trainer.training.setup.code_state import code_of, parts_of

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Base(nn.Module):
    def scaled(self, x):
        return 2 * x

class Block(Base):
    def forward(self, x):
        return self.scaled(x)

class Rows(Dataset):
    def __getitem__(self, index):
        return index

    def collate(self, rows):
        return sum(rows)

def collate(rows, scale=1):
    return [row * scale for row in rows]

def loss(logits, labels):
    return (logits - labels).pow(2).mean()

print("hello")
"""


@pytest.fixture
def script(tmp_path):
    """Imports the user's script, with one text replaced by another; gives its module."""

    def load(old="", new=""):
        assert not old or SCRIPT.count(old) == 1
        path = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        path.write_text(SCRIPT.replace(old, new) if old else SCRIPT)
        spec = importlib.util.spec_from_file_location("users_script", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def codes(script):
    """The code of a model, of data and of a loss that come from the script."""
    model = nn.Sequential(nn.Linear(2, 2), script.Block())
    rows = ConcatDataset([Subset(script.Rows(), [0])])
    collate = functools.partial(script.collate, scale=2)
    loader = {"a": DataLoader(rows, collate_fn=collate)}
    return (
        code_of(type(module) for module in model.modules()),
        code_of(parts_of(loader)),
        code_of(parts_of(script.loss)),
    )


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ('print("hello")', 'print("bye")', (False, False, False)),
        ("import torch\n", "import torch\nimport math\n", (False, False, False)),
        ("self.scaled(x)", "self.scaled(x)  # twice", (False, False, False)),
        ("self.scaled(x)", "self.scaled(x) + 1", (True, False, False)),
        ("return 2 * x", "return 3 * x", (True, False, False)),
        ("return index", "return index + 1", (False, True, False)),
        ("row * scale", "row + scale", (False, True, False)),
        (".pow(2)", ".pow(4)", (False, False, True)),
    ],
)
def test_what_a_run_is_made_of_is_seen_and_the_rest_of_a_script_is_not(
    script, monkeypatch, old, new, changed
):
    found = []
    for texts in (("", ""), (old, new)):
        module = script(*texts)
        monkeypatch.setitem(sys.modules, "users_script", module)
        found.append(codes(module))
    before, after = found
    assert all(before)
    assert tuple(one != other for one, other in zip(before, after, strict=True)) == changed


def test_installed_packages_have_versions_and_no_code_here():
    assert code_of([nn.Linear, dict, pytest.fixture]) == ""


def test_what_was_typed_has_no_code():
    namespace = {"__name__": "typed"}
    exec("class Typed:\n    pass\n", namespace)
    assert code_of([namespace["Typed"]]) == ""
