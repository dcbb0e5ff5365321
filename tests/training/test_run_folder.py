"""A run folder belongs to one process at a time, and nothing of anyone else's is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugin_trainer.errors import PtrainError, RunFolderError
from plugin_trainer.run_folder import RunFolder, find_run, is_run, list_runs, new_folder
from plugin_trainer.training.setup.resume import open_folder
from tests import forkserver

HOLD = """
import sys
from pathlib import Path
from plugin_trainer.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).hold()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    process = forkserver.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.process
def test_a_folder_in_use_by_another_process_is_refused_with_its_number(holder, tmp_path):
    with pytest.raises(RunFolderError, match=f"is in use by process {holder.pid}") as caught:
        open_folder(tmp_path / "run", occupied=True)
    assert caught.value.hint == (
        "wait for it, stop it, or choose another folder with --out",
    )  # fmt: skip
    holder.kill()
    holder.wait()
    open_folder(tmp_path / "run", occupied=True).release()


def test_a_folder_is_free_again_once_it_is_released(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.hold()
    with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        second.hold()
    first.release()
    second.hold()
    second.release()


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_to_be_resumed(fit, tmp_path):
    fit(length="1 steps")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunFolderError, match=r"the run folder .*run is occupied") as caught:
        fit(length="1 steps")
    assert caught.value.hint == (
        'to resume that run: resume="auto"',
        "to start another one elsewhere: out=DIR",
        "to delete that run and start anew: overwrite=True",
    )
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(fit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for resume in ("never", "auto"):
        with pytest.raises(RunFolderError, match="is not empty and not a run folder"):
            fit(resume=resume)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_a_folder_is_refused(fit, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError, match="run is a file"):
        fit()


def test_what_a_run_left_that_died_while_starting_is_no_obstacle(fit, tmp_path):
    (tmp_path / "run" / "assets").mkdir(parents=True)
    (tmp_path / "run" / "assets" / "half.json").write_text("{")
    (tmp_path / "run" / ".lock").write_text("1")
    (tmp_path / "run" / ".run.json.tmp-1").write_text("{")
    assert fit(length="1 steps").status == "finished"
    assert not (tmp_path / "run" / "assets" / "half.json").exists()
    assert not list((tmp_path / "run").glob(".*.tmp-*"))


def test_a_folder_is_released_however_the_run_ends(fit, toy, tmp_path):
    class Fails:
        def ptrain_step_end(self):
            raise KeyboardInterrupt

    for error, options in (
        (KeyboardInterrupt, {"callbacks": [Fails()]}),
        (Exception, {"resume": "auto", "seed": 3}),
        (Exception, {"resume": "auto", "device": "nowhere"}),
    ):
        with pytest.raises(error):
            fit(length="2 steps", **options)
        free = RunFolder(tmp_path / "run")
        free.hold()
        free.release()


# -------------------------------------------------------------------------------------------- names


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_new_folders_are_numbered_and_never_the_same(here):
    assert new_folder("toy") == Path("runs/toy-1")
    assert new_folder("toy") == Path("runs/toy-2")
    assert new_folder("other") == Path("runs/other-1")
    Path("runs/toy-10").mkdir()
    assert new_folder("toy") == Path("runs/toy-11")
    shutil.rmtree("runs/toy-1")
    assert new_folder("toy") == Path("runs/toy-12")


@pytest.mark.parametrize(
    ("base", "name"),
    [("a/b c", "a-b-c-1"), ("../up", "up-1"), ("", "run-1"), ("..", "run-1"), ("ä", "run-1")],
)
def test_any_name_makes_a_folder_under_runs(here, base, name):
    assert new_folder(base) == Path("runs") / name


def test_a_run_is_found_by_its_folder_or_its_name(here):
    run = Path("runs/toy-1")
    run.mkdir(parents=True)
    (run / "run.toml").write_text("")
    assert find_run("toy-1") == find_run("runs/toy-1") == run
    assert is_run(run) and list_runs() == [run]


def test_a_run_that_is_not_there_lists_those_that_are(here):
    with pytest.raises(RunFolderError, match="there is no run 'toy'") as caught:
        find_run("toy")
    assert caught.value.hint == ("there is none under runs/",)
    (Path("runs/toy-1")).mkdir(parents=True)
    (Path("runs/toy-1") / "run.toml").write_text("")
    with pytest.raises(RunFolderError) as caught:
        find_run("toy")
    assert caught.value.hint == ("under runs/ there are: toy-1",)
    Path("empty").mkdir()
    with pytest.raises(RunFolderError, match=r"empty is not a run folder: it has no run\.toml"):
        find_run("empty")


# ---------------------------------------------------------------------------------------- its files


def test_a_run_folder_is_everything_a_run_is(fit, toy, tmp_path):
    fit(validation=toy.loader(4), ema={"decay": 0.9})
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        *(".lock", "assets", "checkpoints", "metrics.jsonl", "run.json", "run.toml"),
    ]
    assert sorted(path.name for path in (run / "checkpoints" / "step-00000006").iterdir()) == [
        *("ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors"),
        "state.json",
    ]
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "finished" and about["step"] == 6 and about["samples"] == 24
    assert about["parameters"] == about["trainable"] == 10
    assert about["packages"]["torch"] and about["machine"]["device"] and about["python"]
    assert about["started"] <= about["ended"]


def test_numbers_that_are_not_finite_are_written_as_text(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.5})
    folder.release()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.5}


def test_lines_of_steps_that_will_be_made_again_are_dropped(tmp_path):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "tr')
    RunFolder(tmp_path).cut_metrics_after(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_run_that_fails_to_start_leaves_no_folder_behind(here, toy):
    import plugin_trainer

    for _ in range(2):
        with pytest.raises(Exception, match="the training data holds no batch"):
            plugin_trainer.fit(toy.net(), [], notify=lambda line: None)
    assert not list(Path("runs").glob("*"))


def test_run_json_says_who_failed_and_with_what(fit, tmp_path):
    class Broken:
        def ptrain_step_end(self):
            raise ValueError("this and\nthat")

    with pytest.raises(PtrainError):
        fit(callbacks=[Broken()])
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    who = "callback 'Broken (1)' failed in ptrain_step_end at step 1"
    assert about["reason"] == f"{who}: ValueError: this and"


def test_run_json_says_that_a_run_failed_though_a_callback_fails_while_it_is_told(fit, tmp_path):
    class Broken:
        def ptrain_run_start(self):
            raise ValueError("first")

        def ptrain_run_failed(self):
            raise ValueError("second")

    with pytest.raises(PtrainError):
        fit(callbacks=[Broken()])
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "failed" and about["reason"].endswith("ValueError: first")
