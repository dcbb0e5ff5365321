"""What a run keeps beside its weights is whole, or named; and no link leads out of its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main

RUN = Path("runs/first")
USES = {
    "evaluate": ["evaluate", str(RUN)],
    "predict": ["predict", str(RUN), "input.txt"],
    "register": ["models", "register", str(RUN), "--name", "m"],
    "resume": ["run", "--resume", str(RUN), "--set", "length=3 epochs", "--allow", "length"],
}


@pytest.fixture
def asset(trained):
    Path("input.txt").write_text("1 2 3\n")
    (path,) = (RUN / "assets").iterdir()
    return path


@pytest.mark.parametrize("command", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("how", ["flipped", "gone", "linked"])
def test_an_asset_that_is_not_what_it_was_is_named(asset, capsys, command, how):
    content = asset.read_bytes()
    asset.unlink()
    if how == "flipped":
        asset.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif how == "linked":
        Path("elsewhere").write_bytes(content)
        asset.symlink_to(Path("elsewhere").absolute())
    assert main(command) == 2
    error = capsys.readouterr().err
    said = {"flipped": "has changed since", "gone": "is missing", "linked": "is a link"}[how]
    assert f"{asset} {said}" in error
    assert not Path("models/artifacts").exists() or not any(Path("models/artifacts").iterdir())


def test_a_run_of_before_there_were_hashes_is_taken_as_it_is(asset):
    path = RUN / "run.json"
    about = json.loads(path.read_text())
    assert about.pop("assets").keys() == {asset.name}
    path.write_text(json.dumps(about))
    assert main(["evaluate", str(RUN)]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "error.txt", "checkpoints"])
def test_a_run_does_not_write_through_a_link(trained, tmp_path, capsys, name):
    target = tmp_path / "target"
    place = RUN / name
    if place.exists():
        place.rename(target)
    else:
        target.write_text("")
    place.symlink_to(target)
    before = target.read_bytes() if target.is_file() else sorted(target.iterdir())
    assert main(USES["resume"]) == 2
    assert f"{place} is a link" in capsys.readouterr().err
    assert before == (target.read_bytes() if target.is_file() else sorted(target.iterdir()))


def test_a_file_that_is_no_asset_of_the_run_is_named(asset, capsys):
    stray = asset.with_name("stray.json")
    stray.write_text("{}")
    assert main(["evaluate", str(RUN)]) == 2
    assert f"{stray} is no asset of this run" in capsys.readouterr().err


@pytest.mark.parametrize("hashes", [[], 5, {"x" * 300: "a" * 64}, {"../run.json": 5}, {"a\0": ""}])
def test_a_damaged_table_of_assets_is_answered_in_words(asset, capsys, hashes):
    path = RUN / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "assets": hashes}))
    assert main(["evaluate", str(RUN)]) == 2
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.timeout(20)
@pytest.mark.parametrize("command", [USES["resume"], ["runs", "show", str(RUN)]])
def test_a_pipe_in_place_of_the_metrics_is_not_waited_for(trained, command):
    (RUN / "metrics.jsonl").unlink()
    os.mkfifo(RUN / "metrics.jsonl")
    assert main(command) in (0, 2)
