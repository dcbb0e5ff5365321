"""Each log line tells the learning rate, one for each group where groups differ."""

from __future__ import annotations

import json

QUIET = ("-progress_bar", "-tensorboard")


def lines(tmp_path):
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_rate_of_the_next_step_is_logged(fit, tmp_path):
    fit(callbacks=QUIET, log="3 steps", validation=None, optimizer={"learning_rate": 0.2})
    assert [line["learning_rate"] for line in lines(tmp_path)] == [0.1, 0.0]


def test_groups_that_differ_are_logged_one_by_one(fit, tmp_path):
    class Differ:
        def ptrain_run_start(self, run):
            run.schedule.step = lambda: None
            run.optimizer.param_groups[1]["lr"] = 0.5

    fit(callbacks=[*QUIET, Differ()], length="1 steps", optimizer={"learning_rate": 0.2})
    (line, *_) = lines(tmp_path)
    assert line["learning_rate/0"] == 0.2 and line["learning_rate/1"] == 0.5
    assert "learning_rate" not in line


def test_it_can_be_taken_away(fit, tmp_path):
    fit(callbacks=[*QUIET, "-learning_rate_monitor"], length="1 steps")
    assert "learning_rate" not in lines(tmp_path)[0]
