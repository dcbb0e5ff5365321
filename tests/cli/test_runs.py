"""`ptrain runs` lists what there is and how each went, whatever state it is in."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from plugin_trainer.run_folder import RunFolder


def set_status(**entries) -> None:
    path = Path("runs/first/run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_runs_are_listed_with_how_they_went(trained, ptrain):
    for command in (["runs"], ["runs", "list"], ["runs", "list", "runs"]):
        typed = ptrain(*command)
        assert typed.code == 0
        header, row = typed.out.splitlines()
        assert header.split() == ["run", "status", "steps", "best", "started"]
        assert re.match(r"first +finished +12/12 +val/accuracy \S+ +20\d\d-", row)
        assert len(row) <= 80


def test_one_run_is_shown_with_its_metrics_and_checkpoints(trained, ptrain):
    for name in ("first", "runs/first"):
        typed = ptrain("runs", "show", name)
        assert typed.code == 0
        assert re.search(r"^ +status +finished$", typed.out, re.M)
        assert re.search(r"^ +model +toy/net$", typed.out, re.M)
        assert re.search(r"^ +saved +step-.*step-00000012$", typed.out, re.M)
        assert re.search(r"^val/accuracy +\S+ +\S+$", typed.out, re.M)
        assert all(len(line) <= 80 for line in typed.out.splitlines())


def test_json_is_for_programs(trained, ptrain):
    for command in (["runs", "--json"], ["runs", "list", "--json"]):
        (run,) = json.loads(ptrain(*command).out)
        assert run["name"] == "first" and run["status"] == "finished" and run["steps"] == "12/12"
    about = json.loads(ptrain("runs", "show", "first", "--json").out)
    assert about["step"] == 12 and about["plugins"]


def test_no_runs_say_how_to_start_one(toy, ptrain):
    typed = ptrain("runs")
    assert typed.code == 0
    assert typed.out == "there is no run in runs/; start one: ptrain run --plugin NAME\n"
    assert json.loads(ptrain("runs", "--json").out) == []


def test_a_run_that_nobody_trains_any_more_was_killed(trained, ptrain):
    set_status(status="running")
    assert "killed" in ptrain("runs").out
    holder = RunFolder(Path("runs/first"))
    holder.hold()
    try:
        assert "running" in ptrain("runs").out
    finally:
        holder.release()


@pytest.mark.parametrize("status", ["running", "killed", "failed"])
def test_a_run_that_has_not_ended_is_shown_as_far_as_it_is(trained, ptrain, status):
    folder = Path("runs/first")
    about = json.loads((folder / "run.json").read_text())
    for name in ("step", "metrics", "best", "ended"):
        del about[name]
    about["status"] = "running" if status == "killed" else status
    (folder / "run.json").write_text(json.dumps(about))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    evaluated = next(number for number, line in enumerate(lines) if line["step"] == 9)
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[: evaluated + 1])
        file.write('{"step": 11, "train/loss": 0.5}\n{"step": 12, "trai')
    (folder / "checkpoints" / "latest.json").write_text('{"checkpoint": "x", "step": 9}')
    holder = RunFolder(folder)
    if status == "running":
        holder.hold()
    try:
        row = ptrain("runs").out.splitlines()[1]
        shown = ptrain("runs", "show", "first").out
        read = json.loads(ptrain("runs", "show", "first", "--json").out)
    finally:
        holder.release()
    assert re.match(rf"first +{status} +11/12 +val/accuracy ", row)
    assert re.search(r"^ +steps +11/12$", shown, re.M)
    assert re.search(rf"^val/loss +{lines[evaluated]['val/loss']:.4f} ", shown, re.M)
    assert "best val/accuracy" in shown
    assert (read["status"], read["step"]) == (status, 11)


def test_looking_at_runs_changes_nothing_in_them(trained, ptrain):
    set_status(status="running")
    lock = Path("runs/first/.lock")
    lock.write_text("12345\n")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    ptrain("runs")
    ptrain("runs", "show", "first")
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    assert lock.read_text() == "12345\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_that_cannot_be_written_is_listed_too(trained, ptrain):
    set_status(status="running")
    Path("runs/first").chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert "killed" in ptrain("runs").out
    finally:
        Path("runs/first").chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("file", "content"),
    [("run.json", "{"), ("run.json", None), ("run.toml", "a = "), ("run.toml", "")],
)
def test_a_damaged_run_is_listed_and_hides_no_other(trained, ptrain, file, content):
    path = Path("runs/first") / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    other = Path("runs/second")
    other.mkdir()
    (other / "run.toml").write_text('model = "a/b"\n')
    typed = ptrain("runs")
    assert typed.code == 0
    assert [line.split()[0] for line in typed.out.splitlines()] == ["run", "first", "second"]
    assert ptrain("runs", "show", "first").code == 0


def test_a_run_that_is_not_there_lists_those_that_are(trained, ptrain):
    typed = ptrain("runs", "show", "frist")
    assert typed.code == 2
    assert typed.err == "error: there is no run 'frist'\n  under runs/ there are: first\n"
