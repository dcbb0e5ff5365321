"""Exits at which nearly all rows leave together are told of, with what to do."""

from __future__ import annotations

import pytest

from plugin_trainer.early_exit.agreement import differs_from_last, fit_agreement
from plugin_trainer.early_exit.certify import Certified, certify
from plugin_trainer.early_exit.collapse import collapse_lines, collapse_warning


@pytest.mark.parametrize("exits", [(), (300,), (0, 0), (95, 5), (50, 50, 200), (0, 950, 50)])
def test_rows_that_leave_at_several_blocks_are_no_collapse(exits):
    assert collapse_warning(exits) == ""


def test_at_the_last_block_training_is_to_blame():
    told = collapse_warning((10, 4, 286))
    assert told.startswith("95 % of rows leave at block 3: the exits have collapsed; ")
    assert told.endswith("train longer, or with loss = 'joint'")


def test_at_an_earlier_block_a_smaller_model_does():
    told = collapse_warning((3, 297, 0))
    assert told.startswith("99 % of rows leave at block 2: the exits have collapsed; ")
    assert "ends at block 2" in told


def test_each_promise_is_looked_at_and_the_terminal_is_kept():
    def certified(share: float, exits: tuple[int, ...]) -> Certified:
        return Certified(2.5, share, 0.95, 300, disagreeing=0, mean_block=2.0, exits=exits)

    lines = collapse_lines([certified(0.01, (0, 0, 300)), certified(0.02, (100, 100, 100))])
    assert lines[0].startswith("warning: at 1%, 100 % of rows leave at block 3")
    assert all(len(line) <= 80 for line in lines)
    assert "2%" not in " ".join(lines)


def test_a_certified_level_knows_where_its_rows_leave(logits):
    logits_NBC = logits(2000)
    scores_NB = fit_agreement(logits_NBC).scores(logits_NBC)
    found = certify(differs_from_last(logits_NBC), scores_NB, max_disagreement=0.02)
    assert len(found.exits) == 6
    assert sum(found.exits) == 2000
    mean = sum(block * rows for block, rows in enumerate(found.exits, start=1)) / 2000
    assert found.mean_block == pytest.approx(mean)
