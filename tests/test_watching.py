"""A metric that is looked at must be there, and the one that was probably meant is named."""

from __future__ import annotations

import pytest

from plugin_trainer.errors import PtrainError
from plugin_trainer.watching import watched


def test_a_metric_is_found_by_its_name():
    assert watched({"val/loss": 1.5}, "val/loss", setting="best.watch") == 1.5


def test_a_mistyped_metric_of_many_names_the_nearest_first():
    metrics = {f"val/{task}/loss": 1.0 for task in ("sentiment", "entities", "relations")}
    with pytest.raises(PtrainError, match=r"best\.watch: the evaluation gave no metric") as caught:
        watched(metrics, "val/sentimnt/loss", setting="best.watch")
    nearest, known = caught.value.hint
    assert nearest == "did you mean 'val/sentiment/loss'?"
    assert known == "it gave: val/entities/loss, val/relations/loss, val/sentiment/loss"


def test_a_metric_that_only_the_raw_weights_have_says_what_the_average_needs():
    with pytest.raises(PtrainError, match=r"'val_ema/own'\s+with \[ema\].*ema = false"):
        given = {"val/own": 1.0, "val/loss": 2.0, "val_ema/loss": 2.0}
        watched(given, "val_ema/own", setting="best.watch")
