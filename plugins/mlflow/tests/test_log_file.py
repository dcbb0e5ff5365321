"""metrics.jsonl is read from any line on, whole lines only, as long as it may grow."""

from __future__ import annotations

import math

import pytest
from ptrain_mlflow.log_file import read_lines, size_of


@pytest.fixture
def log(tmp_path):
    """A log of two lines and the beginning of a third."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "epoch": 0.5, "samples": 4, "time": 10.5, "train/loss": 0.25}\n'
        '{"step": 2, "train/loss": "nan", "val/loss": "-inf"}\n{"step": 3, "tra'
    )
    return path


def test_whole_lines_are_read_and_their_places_are_not_metrics(log):
    one, two = read_lines(log.parent)
    assert (one.step, one.time_s, one.metrics) == (1, 10.5, {"train/loss": 0.25})
    assert two.step == 2
    assert math.isnan(two.metrics["train/loss"]) and two.metrics["val/loss"] == -math.inf


def test_reading_goes_on_where_it_was_left(log):
    one, two = read_lines(log.parent)
    assert [line.step for line in read_lines(log.parent, start=one.end)] == [2]
    with log.open("a") as file:
        file.write('in/loss": 1}\n')
    assert [line.step for line in read_lines(log.parent, start=two.end)] == [3]
    assert size_of(log.parent) == log.stat().st_size


def test_reading_stops_where_it_is_told_to(log):
    one, _ = read_lines(log.parent)
    assert [line.step for line in read_lines(log.parent, until=one.end)] == [1]
    assert list(read_lines(log.parent, until=one.end - 1)) == []


def test_a_run_without_a_log_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path)) == []
    assert size_of(tmp_path) == 0
