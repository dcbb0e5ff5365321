"""`ptrain evaluate` and `ptrain predict` need nothing but the run folder and its plugin."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests import forkserver


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def pipe_in(monkeypatch, text: bytes):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


# ----------------------------------------------------------------------------------------- evaluate


def test_the_best_raw_weights_are_scored_unless_told_otherwise(trained, ptrain):
    about = json.loads(Path("runs/first/run.json").read_text())
    best = about["best"]["raw"]
    typed = ptrain("evaluate", "runs/first")
    assert typed.code == 0
    assert typed.out.splitlines()[0] == f"runs/first/checkpoints/{best['checkpoint']}, raw weights"
    found = re.search(r"^val/accuracy +(\S+)$", typed.out, re.M)
    assert float(found[1]) == pytest.approx(best["value"], abs=1e-4)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_last_weights_score_what_the_run_said(trained, ptrain, weights):
    about = json.loads(Path("runs/first/run.json").read_text())
    typed = ptrain("evaluate", "first", "--checkpoint", "last", "--weights", weights, "--json")
    found = json.loads(typed.out)
    prefix = "val" if weights == "raw" else "val_ema"
    for name in ("loss", "accuracy"):
        assert found[f"{prefix}/{name}"] == pytest.approx(about["metrics"][f"{prefix}/{name}"])
    assert found["checkpoint"] == "runs/first/checkpoints/step-00000012"


def test_a_checkpoint_is_named_by_its_step(trained, ptrain):
    typed = ptrain("evaluate", "first", "--checkpoint", "step-12")
    assert typed.code == 0 and "step-00000012, raw weights" in typed.out


def test_other_data_is_given_with_set(trained, ptrain):
    def score(*options):
        return json.loads(ptrain("evaluate", "first", "--json", *options).out)["val/loss"]

    assert score("--set", "data_settings.validation_rows=4") != score()


def test_the_training_split_can_be_scored(trained, ptrain):
    typed = ptrain("evaluate", "first", "--split", "train", "--json")
    assert typed.code == 0 and "train/loss" in json.loads(typed.out)


def test_a_moved_run_is_scored_where_it_is(trained, ptrain):
    before = ptrain("evaluate", "runs/first", "--json").out
    Path("runs/first").rename("elsewhere")
    after = ptrain("evaluate", "elsewhere", "--json").out
    assert after == before.replace("runs/first", "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "--split", "test"], "error: the run has no data for the split 'test'"),
        (["first", "--split", "tset"], "error: the run has no data for the split 'tset'"),
        (
            ["first", "--checkpoint", "step-5"],
            "error: there is no checkpoint runs/first/checkpoints",
        ),
        (["first", "--checkpoint", "newest"], "error: 'newest' is not a checkpoint"),
        (
            ["first", "--weights", "avg"],
            "error: invalid value for '--weights': 'avg' is not one of",
        ),
        (["second"], "error: there is no run 'second'"),
        (
            ["first", "--set", "data_settings.validation_rowz=4"],
            "error: one mistake in the settings",
        ),
        (
            ["first", "--set", "data_settings.validation_rows=0"],
            "error: the data of the split 'val'",
        ),
    ],
)
def test_what_cannot_be_scored_says_why(trained, ptrain, arguments, message):
    typed = ptrain("evaluate", *arguments)
    assert typed.code == 2
    assert typed.err.startswith(message)
    assert "Traceback" not in typed.err and typed.out == ""


def test_weights_of_another_model_are_refused_in_words(trained, ptrain):
    typed = ptrain("evaluate", "first", "--set", "model_settings.width=5")
    assert typed.code == 2
    assert "do not fit the model Sequential" in typed.err and "size mismatch" in typed.err


# ------------------------------------------------------------------------------------------ predict


def test_each_line_of_a_file_is_answered_in_order_as_json(trained, ptrain):
    Path("input.txt").write_text("3 3 3\n-3 -3 -3\n2 2 2\n-1 -2 -3\n4 4 4\n")
    typed = ptrain("predict", "first", "input.txt")
    assert typed.code == 0
    assert [answer["sign"] for answer in lines(typed.out)] == ["+", "-", "+", "-", "+"]


def test_hooks_of_a_plugin_may_log_in_an_evaluation_as_in_a_run(trained, ptrain):
    hook = """

def ptrain_evaluation_end(run, split, metrics):
    run.log({"seen": 1.0})
    run.log_artifact("seen.txt", split)
    run.report("seen", split)
    if not run.is_dry:
        run.request_stop("seen")
"""
    with Path("toy.py").open("a") as plugin:
        plugin.write(hook)
    before = sorted(Path("runs/first").rglob("*"))
    typed = ptrain("evaluate", "first")
    assert (typed.code, typed.err) == (0, "")
    assert sorted(Path("runs/first").rglob("*")) == before


def test_what_is_piped_in_is_answered(trained, ptrain, monkeypatch):
    pipe_in(monkeypatch, b"3 3 3\n-3 -3 -3")
    assert [answer["sign"] for answer in lines(ptrain("predict", "first").out)] == ["+", "-"]


def test_answers_can_be_written_to_a_file(trained, ptrain):
    Path("input.txt").write_bytes(b"\xef\xbb\xbf3 3 3\r\n-3 -3 -3\r\n")
    typed = ptrain("predict", "first", "input.txt", "--output", "answers.jsonl", "--weights", "ema")
    assert typed.code == 0 and typed.out == ""
    assert len(lines(Path("answers.jsonl").read_text())) == 2


def test_no_input_gives_no_answers(trained, ptrain):
    Path("empty.txt").write_text("")
    typed = ptrain("predict", "first", "empty.txt")
    assert (typed.code, typed.out) == (0, "")


def test_more_lines_than_are_taken_at_once_are_all_answered(trained, ptrain):
    rows = ["3 3 3" if index % 3 else "-3 -3 -3" for index in range(2500)]
    Path("input.txt").write_text("\n".join(rows))
    found = [answer["sign"] for answer in lines(ptrain("predict", "first", "input.txt").out)]
    assert found == ["+" if index % 3 else "-" for index in range(2500)]


def test_a_line_ends_only_where_a_file_says_so(trained, ptrain, monkeypatch):
    text = "3 3\u20283\n-3 -3\x0c-3\n"  # spaces to Python's split, line breaks to its splitlines
    Path("input.txt").write_text(text)
    assert [answer["sign"] for answer in lines(ptrain("predict", "first", "input.txt").out)] == [
        *("+", "-"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "gone.txt"], "error: there is no input file gone.txt"),
        (["first", "runs"], "error: runs cannot be read: Is a directory"),
        (["first", "latin.txt"], "error: latin.txt is not UTF-8: "),
        (["second", "good.txt"], "error: there is no run 'second'"),
        (["first", "good.txt", "--output", "no/such/folder.jsonl"], "error: no/such/folder.jsonl"),
        (
            ["first", "good.txt", "--checkpoint", "step-1"],
            "error: there is no checkpoint runs/first",
        ),
    ],
)
def test_what_cannot_be_answered_says_why(trained, ptrain, arguments, message):
    Path("good.txt").write_text("3 3 3\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    typed = ptrain("predict", *arguments)
    assert typed.code == 2
    assert typed.err.startswith(message)
    assert "Traceback" not in typed.err


def test_input_that_is_piped_in_and_is_not_utf_8_is_refused(trained, ptrain, monkeypatch):
    pipe_in(monkeypatch, b"3 3 3\ncaf\xe9\n")
    typed = ptrain("predict", "first")
    assert typed.code == 2
    assert typed.err.startswith("error: line 2 of the input is not UTF-8: ")


@pytest.mark.process
def test_lines_that_are_piped_in_are_answered_as_they_arrive(trained):
    """A program may write a line, wait for its answer, and write the next."""
    with forkserver.Popen(
        [sys.executable, "-m", "plugin_trainer", "predict", "first"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        for text, sign in [(b"3 3 3\n", "+"), (b"-3 -3 -3\n", "-"), (b"2 2 2\n3 3", "+")]:
            process.stdin.write(text)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["sign"] == sign
        process.stdin.write(b" 3")
        process.stdin.close()
        assert json.loads(process.stdout.read())["sign"] == "+"
    assert process.returncode == 0


def test_the_settings_of_a_run_can_be_changed_to_predict(trained, ptrain):
    Path("input.txt").write_text("3 3 3\n")
    typed = ptrain("predict", "first", "input.txt", "--set", "model_settings.width=5")
    assert typed.code == 2
    assert "do not fit the model Sequential" in typed.err


def test_answers_that_come_in_another_order_are_put_right(trained, ptrain):
    """A data module may sort its lines, if each row of a batch says which line it is."""
    source = Path("toy.py").read_text()
    changed = source.replace("def predict(", "def predict_in_order(").replace(
        "    def decode(",
        "    def predict(self, lines):\n"
        "        import torch\n"
        "        order = sorted(range(len(lines)), key=lambda at: lines[at])\n"
        "        for batch in self.predict_in_order([lines[at] for at in order]):\n"
        "            here, order = order[: len(batch[0])], order[len(batch[0]) :]\n"
        "            yield {'input': batch[0], 'line': torch.tensor(here)}\n\n"
        "    def decode(",
    )
    Path("toy.py").write_text(changed)
    rows = ["3 3 3" if index % 3 else "-3 -3 -3" for index in range(1500)]
    Path("input.txt").write_text("\n".join(rows))
    found = [answer["sign"] for answer in lines(ptrain("predict", "first", "input.txt").out)]
    assert found == ["+" if index % 3 else "-" for index in range(1500)]


def test_data_that_cannot_predict_says_what_it_needs(trained, ptrain):
    source = Path("toy.py").read_text().replace("def decode(", "def recode(")
    Path("toy.py").write_text(source)
    Path("good.txt").write_text("3 3 3\n")
    typed = ptrain("predict", "first", "good.txt")
    assert typed.code == 2
    assert "the data module toy/rows cannot predict" in typed.err


# ------------------------------------------------------------------------------ on a terminal


def on_a_terminal(*typed: str) -> tuple[str, str]:
    """What a command writes to its standard output, and to a terminal as its standard error."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = forkserver.run(
        [sys.executable, "-m", "plugin_trainer", *typed],
        stdout=subprocess.PIPE,
        stderr=its_end,
        text=True,
    )
    os.write(its_end, b"the end")
    seen = os.read(terminal, 1 << 16).decode().removesuffix("the end")
    assert done.returncode == 0, seen
    return done.stdout, seen


@pytest.mark.process
def test_on_a_terminal_a_bar_shows_how_far_an_evaluation_is(trained):
    out, seen = on_a_terminal("evaluate", "first", "--json")
    assert json.loads(out)["val/accuracy"] >= 0
    assert re.search(r"\rvalidation +\d+%\|.{10}\| \d+/\d+ ", seen)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", seen))


@pytest.mark.process
def test_on_a_terminal_a_bar_shows_how_far_a_prediction_into_a_file_is(trained, tmp_path):
    Path("in.txt").write_text("1 2 3\n" * 3)
    on_screen, seen = on_a_terminal("predict", "first", "in.txt")
    assert on_screen.count("\n") == 3 and not seen
    on_screen, seen = on_a_terminal("predict", "first", "in.txt", "--output", "out.jsonl")
    assert not on_screen and Path("out.jsonl").read_text().count("\n") == 3
    assert re.search(r"\d+%\|.*\| [0-3]/3 ", seen)
