"""Progress as a bar on a terminal and as plain lines elsewhere, within 80 columns."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from plugin_trainer.callbacks.evaluation_bar import batches_in
from plugin_trainer.errors import SettingsError

QUIET = ("-tensorboard",)


def rows(count: int) -> TensorDataset:
    return TensorDataset(torch.randn(count, 4), torch.zeros(count).long())


def loader(count: int, *, batch_size: int = 4) -> DataLoader:
    return DataLoader(rows(count), batch_size=batch_size)


def shown(fit, capfd, mode, **settings) -> str:
    capfd.readouterr()
    fit(
        callbacks=[*QUIET, *settings.pop("callbacks", ())],
        callback_settings={"progress_bar": {"mode": mode}},
        log="2 steps",
        **settings,
    )
    out, err = capfd.readouterr()
    assert out == ""
    return err


def test_lines_show_the_step_the_loss_the_rate_and_the_speed(fit, capfd):
    lines = shown(fit, capfd, "lines").splitlines()
    assert re.fullmatch(r"step 2/6  loss \d\S*  lr \d\.\d\de-\d\d(  \d+ samples/s)?", lines[0])
    assert re.fullmatch(r"step 3: val/loss 0\.\d+", lines[1])
    assert [line.split()[1].rstrip(":") for line in lines] == ["2/6", "3", "4/6", "6/6", "6"]


def test_a_bar_counts_the_steps_and_shows_the_newest_numbers(fit, capfd):
    text = shown(fit, capfd, "bar")
    assert "100%" in text and "6/6" in text and "loss" in text and "samples/s" in text
    assert [re.search(rf"epoch {n}: +\d+%\|", text) is not None for n in (1, 2, 3)] == [1, 1, 0]
    assert "step 3: val/loss" in text
    assert text.endswith("\n")


def test_a_bar_fills_80_columns_and_has_room_for_itself(fit, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    drawn = re.split(r"[\r\n]", shown(fit, capfd, "bar"))
    last = [line for line in drawn if "6/6" in line and "loss" in line][-1]
    assert len(last) <= 80
    assert 10 <= len(re.search(r"\|([^|]*)\|", last)[1]) <= 40


def test_a_resumed_bar_begins_where_the_run_stands(fit, capfd):
    class Interrupt:
        def ptrain_checkpoint_committed(self, run):
            if run.progress.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shown(fit, capfd, "bar", callbacks=[Interrupt()])
    text = shown(fit, capfd, "bar", resume="auto")
    assert " 50%" in text and "6/6" in text


def test_off_shows_nothing(fit, capfd):
    assert shown(fit, capfd, "off") == ""


def test_auto_is_lines_where_there_is_no_terminal(fit, capfd, monkeypatch):
    assert "step 2/6" in shown(fit, capfd, "auto")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "%|" in shown(fit, capfd, "auto", out="other")


@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_a_failing_run_ends_its_line(fit, capfd, mode):
    class Fails:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                raise ValueError("broken")

    with pytest.raises(Exception, match="failed in ptrain_step_end"):
        shown(fit, capfd, mode, callbacks=[Fails()])
    assert capfd.readouterr().err.endswith("\n")


def test_many_metrics_go_on_in_lines_of_80_columns_and_none_is_lost(fit, capfd):
    class Many:
        def ptrain_evaluation_end(self, metrics):
            metrics.update({f"val/a_rather_long_name_{index}": index / 7 for index in range(9)})

    lines = shown(fit, capfd, "lines", callbacks=[Many()]).splitlines()
    assert max(map(len, lines)) <= 80
    first = next(number for number, line in enumerate(lines) if line.startswith("step 3: val/loss"))
    evaluation = lines[first : first + 5]
    assert all(line.startswith("   val/") for line in evaluation[1:])
    assert re.findall(r"val/(\S+) \d", " ".join(evaluation)) == [
        "loss",
        *(f"a_rather_long_name_{index}" for index in range(9)),
    ]


@pytest.fixture
def unread():
    """A stream whose reader has gone away, as behind `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    file = os.fdopen(writing, "w", buffering=1)
    yield file
    with contextlib.suppress(OSError):
        file.close()


@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_a_run_goes_on_when_nobody_reads_its_progress(fit, monkeypatch, unread, mode):
    monkeypatch.setattr(sys, "stderr", unread)
    result = fit(
        callbacks=QUIET,
        callback_settings={"progress_bar": {"mode": mode}},
        ema={"decay": 0.5},
        log="1 steps",
    )
    assert (result.status, result.step) == ("finished", 6)


@pytest.mark.parametrize("mode", ["auto", "lines", "bar"])
def test_a_run_without_a_stderr_shows_nothing(fit, monkeypatch, capfd, mode):
    monkeypatch.setattr(sys, "stderr", None)
    fit(callbacks=QUIET, callback_settings={"progress_bar": {"mode": mode}}, length="1 steps")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_mode_is_refused(fit):
    with pytest.raises(SettingsError) as caught:
        fit(callback_settings={"progress_bar": {"mode": "baar"}})
    assert "did you mean 'bar'?" in str(caught.value)


def test_an_evaluation_has_a_bar_of_its_own_that_goes_away(fit, capfd):
    settings = {"validation": loader(12, batch_size=2), "ema": {"decay": 0.5}}
    text = shown(fit, capfd, "bar", limit_batches={"validation": 5}, **settings)
    assert re.search(r"validation +\d+%\|[^|]*\| \d/5 ", text)
    assert re.search(r"validation, average +\d+%\|[^|]*\| \d/5 ", text)
    assert "validation" not in text.rpartition("\r")[2]
    assert "validation " not in shown(fit, capfd, "lines", out="lines", **settings)


@pytest.mark.parametrize(
    ("make", "limit", "expected"),
    [
        (lambda: loader(12), None, 3),
        (lambda: loader(12), 2, 2),
        (lambda: rows(9), None, 3),
        (lambda: {"a": loader(12), "b": rows(5)}, None, 5),
        (lambda: (batch for batch in ()), None, None),
        (lambda: {"a": loader(12), "b": iter(())}, None, None),
    ],
)
def test_the_length_of_an_evaluation_is_told_where_it_is_known(make, limit, expected):
    assert batches_in(make(), limit, batch_size=4) == expected
