"""Whatever a run folder holds, opening it works or ends in words: no traceback, no wait."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.cli.main import main
from plugin_trainer.errors import PtrainError

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}
DATA = DataLoader(TensorDataset(torch.ones(8, 4), torch.arange(8) % 2), batch_size=4)
NOBODY = 65534
SEEDS = int(os.environ.get("FUZZ", "200"))  # `make fuzz` takes thousands
VALUES = [
    None, 5, -1, 1e308, True, "", "x" * 5000, "../../x", [], {}, [[]] * 3, {"a": {"b": [1]}},
    float("inf"), float("nan"), "\ud800", "step-00000002", {"checkpoint": 5},
]  # fmt: skip


def train(folder, length, **settings):
    torch.manual_seed(0)
    return plugin_trainer.fit(
        nn.Linear(4, 2), DATA, DATA, loss="CrossEntropyLoss", length=length, save="1 step",
        evaluate="1 step", ema={"decay": 0.5}, out=folder, **{**QUIET, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(folder, "3 steps")
    return folder


def replaced(value, luck):
    """A JSON value with something else in one place of it."""
    if isinstance(value, dict) and value and luck.random() < 0.8:
        key = luck.choice(sorted(value))
        if luck.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: replaced(value[key], luck)}
    if isinstance(value, list) and value and luck.random() < 0.7:
        at = luck.randrange(len(value))
        return [*value[:at], replaced(value[at], luck), *value[at + 1 :]]
    return luck.choice(VALUES)


def damage(path, luck):
    """Damage a file in one of many ways; what was done."""
    content = path.read_bytes()
    ways = ["cut", "flip", "empty", "noise", "folder", "fifo", "gone", "utf-16", "deep", "link"]
    if path.suffix == ".json":
        ways += ["value"] * 10
    way = luck.choice(ways)
    if way in ("folder", "fifo", "gone", "link"):
        path.unlink()
    if way == "cut":
        path.write_bytes(content[: luck.randrange(len(content) + 1)])
    elif way == "flip" and content:
        at = luck.randrange(len(content))
        path.write_bytes(
            content[:at] + bytes([content[at] ^ (1 << luck.randrange(8))]) + content[at + 1 :]
        )
    elif way == "noise":
        path.write_bytes(luck.randbytes(luck.randrange(1, 200)))
    elif way == "utf-16":
        path.write_bytes(content.decode("latin-1").encode("utf-16"))
    elif way == "deep":
        path.write_text("[" * 100_000)
    elif way == "folder":
        path.mkdir()
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to("/dev/zero")
    elif way == "value":
        text = json.dumps(replaced(json.loads(content), luck))
        path.write_text(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
    elif way == "empty":
        path.write_bytes(b"")
    return way


def use_all(folder, capsys, what):
    """Use a run folder in every way; whether one of them was refused."""
    refused = False
    for use in (
        lambda: plugin_trainer.load_run(folder, model=nn.Linear(4, 2), validation=DATA).evaluate(),
        lambda: train(folder, "3 steps", resume="auto"),
        lambda: train(folder, "4 steps", resume="auto", allow=["length"]),
    ):
        try:
            use()
        except PtrainError as error:
            assert len(str(error)) < 5000, what
            refused = True
    for command in (["runs", "list", str(folder.parent)], ["runs", "show", str(folder)]):
        assert main(command) in (0, 2), what
    said = "".join(capsys.readouterr())
    assert "internal error" not in said and "Traceback" not in said, f"{what}\n{said}"
    return refused


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 20)) for seed in range(SEEDS)]
)
def test_a_damaged_run_folder_is_opened_or_refused_in_words(sound, tmp_path, capsys, seed):
    luck = random.Random(seed)
    folder = tmp_path / "runs" / "run"
    shutil.copytree(sound, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    victim = luck.choice([path for path in files if path.suffix != ".tfevents"])
    way = damage(victim, luck)
    use_all(folder, capsys, f"{way} of {victim.relative_to(folder)}")


@contextmanager
def user_who_owns(folder):
    """As a user who owns the folder and may not read all, which root may."""
    if os.geteuid() != 0:
        yield
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused_in_words(sound, tmp_path, capsys):
    package = Path(plugin_trainer.__file__)
    if os.geteuid() == 0 and not all(p.stat().st_mode & 0o001 for p in package.parents):
        pytest.skip("the folder of the project is closed to other users, and root may read all")
    whole = tmp_path / "runs" / "run"
    shutil.copytree(sound, whole)
    # What is imported on the way is imported now: another user may not read this one's packages.
    assert not use_all(whole, capsys, "nothing")
    names = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.name != ".lock"]
    refused = set()
    for name in names:
        with tempfile.TemporaryDirectory() as outer:  # others may go into it, unlike pytest's
            Path(outer).chmod(0o755)
            folder = Path(outer) / "runs" / "run"
            shutil.copytree(sound, folder)
            with user_who_owns(folder.parent):
                (folder / name).chmod(0)
                if use_all(folder, capsys, f"{name}, which may not be read"):
                    refused.add(str(name))
    assert {"run.toml", "checkpoints", "checkpoints/step-00000003/model.safetensors"} <= refused
